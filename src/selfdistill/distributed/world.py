"""What a rank knows, and says to the others."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from selfdistill.determinism import deterministic
from selfdistill.distributed import sharding
from selfdistill.files import atomic_path

# Tells torch elastic to leave the store by which ranks meet to the ranks. Its own outlives a
# meeting, and with other hosts in the next one its entries are wrong.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_REPORT = "TORCHELASTIC_ERROR_FILE"  # where torch elastic waits for a rank's exception
# With a rank that neither answers nor hangs up; it may be writing 50 GB to a slow disk.
_PATIENCE = timedelta(minutes=30)
_MEETING = timedelta(minutes=10)  # with a host that does not come


class LostRankError(ConnectionError):
    """Another rank does not answer any more."""


@dataclass(frozen=True)
class World:
    """This process among its ranks.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        device: Where this process computes.
        strategy: What each rank holds of what is trained: "ddp" all of it, "fsdp" some rows.
    """

    rank: int
    size: int
    device: torch.device
    strategy: str = "ddp"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that logs and writes."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether parameters are cut among the ranks."""
        return self.size > 1 and self.strategy == "fsdp"

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; ranks must call it together."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))  # on the CPU: gloo carries it, no GPU has to wait
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def from_main(self, numbers: Sequence[int]) -> list[int]:
        """Return rank 0's numbers on every rank; ranks must call it together."""
        if self.size == 1:
            return list(numbers)
        length = torch.tensor(len(numbers))  # on the CPU, as in `any`
        dist.broadcast(length, 0)
        values = torch.zeros(int(length), dtype=torch.int64)
        if self.is_main:
            values = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(values, 0)
        return [int(value) for value in values.tolist()]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks of a tensor."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def place(
        self, module: nn.Module, layers: Iterable[nn.Module], whole: Sequence[nn.Module]
    ) -> None:
        """Bring a module to the device; cut its parameters among the ranks if that is the strategy.

        Args:
            module: Whose `forward` is all that computes with the parameters.
            layers: Parts of it that are called as modules, and made whole one by one.
            whole: Parts of it that each rank keeps whole; nothing trains them.
        """
        if not self.shards:
            module.to(self.device)
            return
        for part in whole:
            part.to(self.device)
        # What is cut goes to the device piece by piece: there may be no room for all of it.
        sharding.shard(module, layers, whole, self.device.type)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap a module whose trained parameters get the mean gradient of all ranks."""
        if self.size == 1 or self.shards:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrap: Any = nn.parallel.DistributedDataParallel
        # The buffers are constants. torch 2.13 renamed the switch.
        names = inspect.signature(wrap).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        return wrap(module, device_ids=ids, gradient_as_bucket_view=True, **{switch: False})

    @contextmanager
    def synchronised(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Run a backward pass that exchanges gradients only if it is the `last` of a step.

        Ranks that hold rows exchange in every pass: a whole gradient is what they have no room for.
        """
        if last or self.size == 1 or self.shards:
            yield
        else:
            with module.no_sync():  # type: ignore[operator]
                yield

    def norm(self, of_part: Tensor) -> Tensor:
        """Return the norm of something, (), from that of this rank's part of it."""
        if not self.shards:
            return of_part
        return self.sum(of_part.double().square()).sqrt().to(of_part.dtype)

    def gather_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        """Return the whole tensor (num_rows, ...) of which each rank gives its rows."""
        return sharding.gather_rows(rows, num_rows, self.size) if self.shards else rows

    def own_rows(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of a whole tensor."""
        return sharding.own_rows(whole, self.rank, self.size) if self.shards else whole

    def state_of(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a module's state with whole tensors, on rank 0; all ranks call it.

        Sharded tensors are made whole one by one and brought to the CPU.
        """
        state = module.state_dict()
        if not self.shards:
            return state
        whole = {}
        for name, value in state.items():
            is_part = sharding.is_cut(value)
            full = self.gather_rows(sharding.local(value), value.shape[0]) if is_part else value
            if self.is_main:
                whole[name] = full.cpu()
        return whole

    def load_state(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put the state that `state_of` gave into a module, on any number of ranks."""
        if not self.shards:
            module.load_state_dict(state)
            return
        own = module.state_dict()
        if own.keys() != state.keys():
            different = sorted(own.keys() ^ state.keys())
            raise ValueError(f"the saved state has other tensors than the method: {different}")
        for name, value in own.items():
            is_part = sharding.is_cut(value)
            sharding.local(value).copy_(self.own_rows(state[name]) if is_part else state[name])

    def optimizer_state(self, optimizer: Optimizer, num_rows: list[int]) -> dict[str, Any]:
        """Return an optimizer's state with whole tensors, on rank 0; all ranks call it.

        Args:
            optimizer: Holds what this rank holds of parameters.
            num_rows: Length of the first axis of each whole parameter, in the optimizer's order.
        """
        state = optimizer.state_dict()
        if not self.shards:
            return state
        return sharding.whole_state(state, num_rows, self.size, keep=self.is_main)

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Put the state that `optimizer_state` gave into an optimizer, on any number of ranks."""
        mine = sharding.part_state(state, self.rank, self.size) if self.shards else state
        optimizer.load_state_dict(mine)


@dataclass(frozen=True)
class Job:
    """What ranks are to do.

    Attributes:
        target: Entry point of a stage, "module:function".
        spec: The JSON file that tells it what to do.
        device: "cpu" or "cuda".
        strategy: As in `World`.
    """

    target: str
    spec: str
    device: str
    strategy: str = "ddp"


@contextmanager
def joined(job: Job | None, store: Path | None = None) -> Iterator[tuple[Job, World]]:
    """Join the ranks that torch elastic started, as its environment variables say.

    Args:
        job: What to do; None: what a rank of another host says.
        store: A file by which the ranks of a single host find each other; None: over the network.

    Yields:
        The job, and this rank. Rank 0 is on the host that knew the job.

    Raises:
        LostRankError: If the block fails because another rank has gone.
        ValueError: If ranks of two hosts know a job, or torchrun was started otherwise than
            docs/distribution.md says.
    """
    job, found, rank, size = _meet(job, store)
    where = torch.device(job.device)
    with deterministic(job.device):
        if job.device == "cuda":
            where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(where)
        if size > 1:
            backend = "cpu:gloo,cuda:nccl" if job.device == "cuda" else "gloo"
            with _naming_lost_ranks():
                dist.init_process_group(
                    backend, store=found, rank=rank, world_size=size, timeout=_PATIENCE
                )
        try:
            with _naming_lost_ranks():
                yield job, World(rank, size, where, job.strategy)
        finally:
            if size > 1:
                dist.destroy_process_group()


def _meet(job: Job | None, file: Path | None) -> tuple[Job, Any, int, int]:
    """Find the other ranks; return job, store, rank and number of ranks.

    torch elastic numbers hosts by their addresses. Counting starts at the host that knows the job.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if job is not None and size == 1:
        return job, None, rank, size
    if job is not None and file is not None:
        _stay_on_loopback()
        store: Any = dist.FileStore(str(file), size)  # type: ignore[attr-defined]
        return job, store, rank, size
    if os.environ.get(OWN_STORE) != "1":
        raise ValueError(f"set {OWN_STORE}=1 for torchrun (docs/distribution.md)")
    with _naming_lost_ranks():
        meeting = dist.rendezvous("env://", rank, size, timeout=_MEETING)  # type: ignore[attr-defined]
        store, rank, size = next(meeting)
        if job is not None and int(os.environ["LOCAL_RANK"]) == 0:
            if store.add("num_jobs", 1) > 1:
                raise ValueError(
                    "two hosts have started a job at the same distributed.rendezvous: run Kedro "
                    "on host 0 alone, and `python -m selfdistill.worker join` on the others"
                )
            store.set("job", json.dumps({**asdict(job), "first": rank}))
        told = json.loads(store.get("job"))
    first = told.pop("first")
    return Job(**told), store, (rank - first) % size, size


def _stay_on_loopback() -> None:
    """Let the ranks of a single host listen to nobody else, unless the user has said where."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo" if sys.platform.startswith("linux") else "lo0")


@contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    """Tell the failures that only say that another rank has gone from all others."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        # torch's own errors have a class; gloo's are plain, and name the place in its transport.
        if isinstance(error, dist.DistError) or "gloo/transport" in text:
            raise LostRankError(f"another rank does not answer: {text.splitlines()[0]}") from error
        raise


def reporting(entry: Callable[..., None]) -> Callable[..., None]:
    """Decorate a rank's entry point so that its exception reaches whoever started the ranks.

    A rank that is ended while it writes its report leaves none: torch elastic, which writes the
    file in place, could not read half of one.
    """
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, record

    class Reporter(ErrorHandler):
        def record_exception(self, e: BaseException) -> None:
            if _REPORT not in os.environ:  # nobody waits for it
                return
            with atomic_path(Path(os.environ[_REPORT])) as partial:
                os.environ[_REPORT] = str(partial)
                super().record_exception(e)

    return record(entry, Reporter())
