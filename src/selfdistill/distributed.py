"""Ranks: how they are started, and the few things they say to each other.

The only module that imports `torch.distributed`. A node starts ranks with `launch`; each of them
runs `python -m selfdistill.worker SPEC`, the command that `torchrun` runs on several hosts.
"""

import builtins
import ctypes
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import DamagedError, temporary_name, write_json

# Exceptions that say what a user can mend; they reach whoever started the ranks as they are.
_KINDS = (ValueError, OSError, FloatingPointError)
# What the signals that nobody sent on purpose mean.
_REASONS = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGBUS: ", as when a mapped file was cut off or cannot be read; verify_<dataset> tells",
}


@dataclass(frozen=True)
class World:
    """This process among its ranks.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that logs and writes."""
        return self.rank == 0

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

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks of a tensor."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap a module whose trained parameters get the mean gradient of all ranks."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrap: Any = nn.parallel.DistributedDataParallel
        # The buffers are constants. torch 2.13 renamed the switch.
        names = inspect.signature(wrap).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        return wrap(module, device_ids=ids, gradient_as_bucket_view=True, **{switch: False})

    @contextmanager
    def synchronised(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Run a backward pass that exchanges gradients only if it is the `last` of a step."""
        if last or self.size == 1:
            yield
        else:
            with module.no_sync():  # type: ignore[operator]
                yield


def pick_device(name: str) -> str:
    """Resolve "auto"; raise ValueError when CUDA is asked for and absent."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("distributed.device is 'cuda', but torch sees no GPU; use 'auto' or 'cpu'")
    return name


def num_ranks(config: DistributedConfig) -> int:
    """Return how many ranks `launch` starts."""
    if config.num_ranks != "auto":
        return config.num_ranks
    return torch.cuda.device_count() if pick_device(config.device) == "cuda" else 1


def run_job(
    run: Callable[[Path, World], None],
    directory: Path,
    spec: Mapping[str, Any],
    config: DistributedConfig,
) -> None:
    """Write down what a job's ranks have to do, beside its directory, and have it done.

    Args:
        run: A module-level function of a stage.
        directory: Where the job keeps its results, as `files.job` gives it.
        spec: JSON values; paths as strings.
        config: The machine.

    Raises:
        ValueError, OSError, FloatingPointError, RuntimeError: As `launch` does.
    """
    file = temporary_name(directory.with_suffix(".json"))  # others may do their shares of the job
    write_json(file, {"directory": str(directory), **spec})
    try:
        launch(run, file, config)
    finally:
        file.unlink(missing_ok=True)


def launch(run: Callable[[Path, World], None], spec: Path, config: DistributedConfig) -> None:
    """Run `run(spec, world)` on every rank and wait.

    One CPU rank runs in this process. Otherwise each rank is a process of its own, started by
    torch elastic on `python -m selfdistill.worker`, which finds `run` by the name of its module.

    Args:
        run: A module-level function of a stage.
        spec: The JSON file that tells it what to do.
        config: The machine.

    Raises:
        ValueError, OSError, FloatingPointError: As the first failed rank raised it.
        ChildProcessError: If that rank was killed.
        RuntimeError: If that rank raised anything else; its own traceback is in its output.
    """
    device, size = pick_device(config.device), num_ranks(config)
    if size == 1 and device == "cpu":
        run(spec, World(0, 1, torch.device("cpu")))
        return
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    target = f"{run.__module__}:{run.__qualname__}"
    with tempfile.TemporaryDirectory(prefix="selfdistill-ranks-") as logs, _threads_for(size):
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id=spec.stem,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(settings, sys.executable)(
                "-u", "-m", "selfdistill.worker", target, str(spec), device, str(os.getpid())
            )
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name, code = failure.signal_name(), signal.Signals(-failure.exitcode)
                raise ChildProcessError(
                    f"rank {rank} was ended by {name}{_REASONS.get(code, '')}: run again, what is "
                    "finished is kept"
                ) from error
            raise _as_raised(rank, failure.message) from error
        except SignalException as error:  # the ranks have been told, and have saved and left
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None


def _as_raised(rank: int, report: str | dict[str, Any]) -> Exception:
    """Return a rank's exception, from the report that torch elastic hands over: "Kind: text"."""
    message = str(report["message"] if isinstance(report, dict) else report)
    name, separator, text = message.partition(": ")
    kind = DamagedError if name == "DamagedError" else getattr(builtins, name, None)
    if separator and isinstance(kind, type) and issubclass(kind, _KINDS):
        return ValueError(text) if issubclass(kind, UnicodeError) else kind(text)
    return RuntimeError(f"rank {rank} failed: {message}")


@contextmanager
def _threads_for(num_ranks: int) -> Iterator[None]:
    """Share the cores among the ranks to be started, unless the user has said how."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, len(os.sched_getaffinity(0)) // num_ranks))
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the ranks that torch elastic started, as its environment variables say."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = torch.device(device)
    if device == "cuda":
        # The same bits each time, on the same kind of GPU; products of float32 may use TF32.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Nobody reads memory that was not written; filling it would cost bandwidth.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision("high")
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend)
    try:
        yield World(rank, size, where)
    finally:
        if size > 1:
            dist.destroy_process_group()


def reporting(entry: Callable[..., None]) -> Callable[..., None]:
    """Decorate a rank's entry point so that its exception reaches whoever started the ranks."""
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(entry)


def die_with_parent(starter: int) -> None:
    """Ask the kernel to terminate this process when its parent dies (Linux only).

    Args:
        starter: Process id of whoever started the ranks; 0 when unknown (`torchrun`).
    """
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    if starter and os.getppid() != starter:  # it died before the call above
        os.kill(os.getpid(), signal.SIGTERM)
