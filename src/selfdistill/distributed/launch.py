"""How ranks are started, and started again when one is lost."""

import builtins
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from selfdistill.determinism import deterministic
from selfdistill.distributed.world import OWN_STORE, World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import DamagedError, temporary_name, write_json

logger = logging.getLogger(__name__)

# Exceptions that say what a user can mend; they reach whoever started the ranks as they are.
_KINDS = (ValueError, OSError, FloatingPointError)
# What the signals that nobody sent on purpose mean.
_REASONS = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGBUS: ", as when a mapped file was cut off or cannot be read; verify_<dataset> tells",
}
_TOLD_TO_STOP = (128 + signal.SIGTERM, 128 + signal.SIGINT)
# Torch elastic sends SIGTERM to the ranks that are left, and SIGKILL to those that stay for so many
# seconds; SIGABRT is how torch and NCCL give a rank up.
_CONSEQUENCES, _STAY = {signal.SIGABRT: 1, signal.SIGTERM: 4}, 30  # with how little they tell
# Where torch elastic puts handlers of its own, and seconds that ranks have to save and leave then.
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_LEAVE = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
# Seconds: how long hosts are waited for, and then those beyond the fewest that are enough.
_JOIN, _LAST_CALL = 600, 30
_STEADY = 3600  # seconds: ranks that were at work for longer are lost for another reason
_MEETING = "selfdistill"  # what --rdzv-id says on the other hosts


class _LostError(Exception):
    """Ranks are gone that raised nothing; the text says which, and why."""


class _BrokenGPUError(_LostError):
    """A rank's GPU broke, which aborts the other ranks."""


_LOSSES = {"LostRankError": _LostError, "AcceleratorError": _BrokenGPUError}


def pick_device(name: str) -> str:
    """Resolve "auto"; raise ValueError when CUDA is asked for and absent."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("distributed.device is 'cuda', but torch sees no GPU; use 'auto' or 'cpu'")
    return name


def num_ranks(config: DistributedConfig) -> int:
    """Return how many ranks `launch` starts on this host."""
    if config.num_ranks != "auto":
        return config.num_ranks
    return torch.cuda.device_count() if pick_device(config.device) == "cuda" else 1


def world_size(config: DistributedConfig) -> int:
    """Return how many ranks work together, if all hosts have as many as this one."""
    return num_ranks(config) * (config.num_hosts if config.spans_hosts else 1)


def run_job(
    run: Callable[[Path, World], None],
    directory: Path,
    spec: Mapping[str, Any],
    config: DistributedConfig,
) -> None:
    """Write down what a job's ranks have to do, beside its directory, and have it done.

    Args:
        run: A module-level function of a stage.
        directory: Where the job keeps its results, as `files.job` gives it; all hosts see it.
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
    When a rank is lost, all are started again, as many as the machine has now; `run` has to go on
    from what it has saved. What a rank raises is not tried again, unless its GPU raised it.

    Args:
        run: A module-level function of a stage.
        spec: The JSON file that tells it what to do.
        config: The machine.

    Raises:
        ValueError, OSError, FloatingPointError: As the first failed rank raised it.
        ChildProcessError: If ranks were lost more than `config.max_restarts` times in a row, with
            less than an hour's work between two losses.
        RuntimeError: If a rank raised anything else; its own traceback is in its output.
        SystemExit, KeyboardInterrupt: After SIGTERM or SIGINT, when the ranks have left.
    """
    device = pick_device(config.device)
    if config.spans_hosts and config.host:
        raise ValueError(
            f"distributed.host {config.host}: only host 0 runs Kedro on several hosts. Lend this "
            "one's ranks with `torchrun ... -m selfdistill.worker join` (docs/distribution.md), or "
            "set distributed.rendezvous to null"
        )
    if world_size(config) == 1 and device == "cpu":
        with deterministic(device):
            run(spec, World(0, 1, torch.device("cpu")))
        return
    arguments = [f"{run.__module__}:{run.__qualname__}", str(spec), device]
    arguments += ["--strategy", config.strategy, "--starter", str(os.getpid())]
    num_losses = 0
    while True:
        start = time.monotonic()
        lost = _start(arguments, config, again=num_losses > 0)
        gc.collect()  # the store where hosts have met, or the next start would find it closed
        if lost is None:
            return
        num_losses = 1 if time.monotonic() - start > _STEADY else num_losses + 1
        if num_losses > config.max_restarts:
            raise ChildProcessError(f"{lost}: run again, what is finished is kept")
        logger.warning(
            "%s; starting the ranks again (%d of %d)", lost, num_losses, config.max_restarts
        )


def _start(arguments: list[str], config: DistributedConfig, *, again: bool) -> str | None:
    """Start the ranks of this host once, and wait; on several hosts, meet the others first.

    Returns:
        Which rank was lost, if one was: no exception, which would keep what it has passed through.

    Raises:
        Exception: As `launch` says.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    size = num_ranks(config)
    with (
        tempfile.TemporaryDirectory(prefix="selfdistill-ranks-") as folder,
        _environment(size),
        _own_handlers(),
    ):
        where: dict[str, Any] = {
            "rdzv_endpoint": f"{folder}/hosts",
            "rdzv_configs": {"store_type": "file"},
            "local_addr": "localhost",
        }
        if config.spans_hosts:
            timeouts = {"join_timeout": _JOIN, "last_call_timeout": _LAST_CALL}
            where = {
                "rdzv_endpoint": config.rendezvous,
                "rdzv_configs": {"is_host": True, **timeouts},
            }
        else:
            arguments = [*arguments, "--store", f"{folder}/ranks"]
        num_hosts = config.num_hosts if config.spans_hosts else 1
        settings = LaunchConfig(
            min_nodes=1 if again else num_hosts,  # a host may be lost for good
            max_nodes=num_hosts,
            nproc_per_node=size,
            run_id=_MEETING,
            rdzv_backend="c10d",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=f"{folder}/logs"),
            **where,
        )
        try:
            elastic_launch(settings, sys.executable)("-u", "-m", "selfdistill.worker", *arguments)
        except ChildFailedError as error:
            fault = _fault(error.failures)
            if isinstance(fault, _LostError):
                return str(fault)
            raise fault from error
        except RendezvousTimeoutError as error:
            raise ConnectionError(
                f"distributed.rendezvous {config.rendezvous}: the {num_hosts} hosts did not meet "
                f"within {_JOIN} s: start `torchrun ... -m selfdistill.worker join` on all but "
                "this one (docs/distribution.md), or lower distributed.num_hosts"
            ) from error
        except RendezvousError as error:
            raise ConnectionError(
                f"distributed.rendezvous {config.rendezvous}: hosts cannot meet there "
                f"({type(error).__name__}: {error}): it is a name of this host, and a port that "
                "no other run has taken"
            ) from error
    return None


def _fault(failures: Mapping[int, Any]) -> Exception:
    """Return what to raise for the ranks that failed, by rank, as torch elastic reports them.

    What a user can mend comes first; then a signal from outside or a broken GPU, which make the
    others fail too; then anything else that a rank raised. What is left only says that some rank
    has gone: the one that tells the most.
    """
    raised: list[tuple[float, Exception]] = []
    lost: list[tuple[int, str]] = []
    causes: list[tuple[float, str]] = []
    for rank, failure in sorted(failures.items(), key=lambda item: item[1].timestamp):
        code = failure.exitcode
        if code < 0:
            number = signal.Signals(-code)
            text = f"rank {rank} was ended by {number.name}{_REASONS.get(number, '')}"
            lost.append((_CONSEQUENCES.get(number, 0), text))
            if number not in _CONSEQUENCES:
                causes.append((failure.timestamp, text))
        elif code in _TOLD_TO_STOP:
            lost.append((2, f"rank {rank} was told to stop"))
        elif isinstance(error := _as_raised(rank, failure.message), _BrokenGPUError):
            lost.append((0, str(error)))
            causes.append((failure.timestamp, str(error)))
        elif isinstance(error, _LostError):
            lost.append((3, str(error)))
        else:
            raised.append((failure.timestamp, error))
    if not raised:
        return _LostError(min(lost)[1])
    first, error = raised[0]
    for _, mendable in raised:
        if isinstance(mendable, _KINDS):
            return mendable
    explanations = [text for when, text in causes if when < first + _STAY]
    return _LostError(explanations[0]) if explanations else error


def _as_raised(rank: int, report: str | dict[str, Any]) -> Exception:
    """Return a rank's exception, from the report that torch elastic hands over: "Kind: text"."""
    message = str(report["message"] if isinstance(report, dict) else report)
    name, separator, text = message.partition(": ")
    if name in _LOSSES:
        return _LOSSES[name](f"rank {rank}: {text}")
    kind = DamagedError if name == "DamagedError" else getattr(builtins, name, None)
    if separator and isinstance(kind, type) and issubclass(kind, _KINDS):
        return ValueError(text) if issubclass(kind, UnicodeError) else kind(text)
    return RuntimeError(f"rank {rank} failed: {message}")


@contextmanager
def _environment(num_ranks: int) -> Iterator[None]:
    """Share the cores among the ranks to be started, and give them time to save when told to leave.

    What the user has set stays as it is.
    """
    values = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // num_ranks))}
    values |= {OWN_STORE: "1", _LEAVE[0]: _LEAVE[1]}
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Put this process's signal handlers back after the block, in which torch elastic has its own.

    Outside the main thread, neither sets any.

    Raises:
        SystemExit, KeyboardInterrupt: After a signal within the block, up to its last line; ranks
            that were there have been told, and have saved and left.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    if handler is not None:  # None: not set by Python
                        signal.signal(number, handler)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
