"""Raw images -> shards of cropped images: resumable, in any number of processes.

Shard k is made of raw images [k S, (k + 1) S), S the shard size, by nobody else's help: neither
the number of processes nor the runs it took change a byte. What cannot be decoded is recorded as a
reject, and its shard is that much shorter.
"""

import fcntl
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import PIL
from tqdm import tqdm

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.crops import CROPS, decode_rgb
from selfdistill.data.readers import Reader
from selfdistill.data.shards import Shards, ShardWriter, finalize, missing_shards
from selfdistill.files import fingerprint, job_directory

logger = logging.getLogger(__name__)

_DECODER = f"Pillow {PIL.__version__.partition('.')[0]}"  # its pixels may change with the major
_BYTES_PER_ROW = 256  # of a shard, beside the pixels: key, label, padding; generous
_REJECTS_NAMED = 5
_POLL_SECONDS = 0.5


def build_shards(raw: Reader, config: PreprocessConfig, num_workers: int, scratch: Path) -> Shards:
    """Make the shards that are missing in `scratch`, then their manifest.

    Args:
        raw: The raw images.
        config: Crop, resolution, shard size and what is expected of the raw images.
        num_workers: Processes; 0 works in this one.
        scratch: Parent of the directory, named by a fingerprint of whatever determines the
            shards, in which they are made.

    Returns:
        The finished set, still in scratch.

    Raises:
        ValueError: If the number of classes is not the expected one, the disk is too small, or
            too many images were rejected; the shards stay.
        RuntimeError: If another run works in `scratch`.
        OSError: If a raw image cannot be read.
    """
    if len(raw.class_names) != config.num_classes:
        raise ValueError(
            f"the raw images have {len(raw.class_names)} classes, preprocess.num_classes is "
            f"{config.num_classes}: correct the parameter, or the raw images"
        )
    num_shards = -(-len(raw) // config.shard_size)
    job = fingerprint(config.crop, config.resolution, config.shard_size, raw.fingerprint, _DECODER)
    with _only_run_in(scratch):
        directory = job_directory(scratch, job)
        _make(_Job(raw, config, directory), missing_shards(directory, num_shards), num_workers)
        shards = finalize(
            directory,
            num_shards=num_shards,
            shape=(config.resolution, config.resolution, 3),
            dtype="uint8",
            class_names=raw.class_names,
            sources=raw.sources(),
            about={
                "crop": config.crop,
                "resolution": config.resolution,
                "raw_fingerprint": raw.fingerprint,
                "pillow_version": PIL.__version__,
            },
        )
    _check_rejects(shards, config.max_reject_share)
    return shards


@dataclass(frozen=True)
class _Job:
    """What all shards of a set have in common."""

    raw: Reader
    config: PreprocessConfig
    directory: Path

    def task(self, shard: int) -> "_Task":
        size = self.config.shard_size
        stop = min((shard + 1) * size, len(self.raw))
        return _Task(shard, self.raw.part(shard * size, stop), self.config, self.directory)


@dataclass(frozen=True)
class _Task:
    """One shard to make, with the raw images of its share."""

    shard: int
    raw: Reader
    config: PreprocessConfig
    directory: Path

    def run(self, count: Callable[[], object]) -> None:
        """Crop the share image by image; call `count` after each."""
        crop, size = CROPS[self.config.crop], self.config.resolution
        with ShardWriter(self.directory, self.shard, (size, size, 3), "uint8") as shard:
            for image in self.raw.iterate():
                try:
                    pixels = crop(decode_rgb(image.data), size)
                except ValueError as error:
                    shard.reject(image.key, str(error))
                else:
                    shard.append(image.key, image.label, pixels)
                count()


def _make(job: _Job, missing: list[int], num_workers: int) -> None:
    """Make the missing shards and show how far it is."""
    for leftover in job.directory.glob(".*.tmp"):  # of a killed run
        leftover.unlink()
    if not missing:
        return
    tasks = [job.task(shard) for shard in missing]
    num_images = sum(len(task.raw) for task in tasks)
    _check_space(job.directory, num_images, job.config.resolution)
    logger.info(
        "Cropping %d images to %d x %d, from shard %d on, in %s",
        num_images,
        job.config.resolution,
        job.config.resolution,
        missing[0],
        f"{num_workers} processes" if num_workers else "this process",
    )
    with tqdm(
        desc="crop",
        total=len(job.raw),
        initial=len(job.raw) - num_images,
        unit="img",
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ) as bar:
        if num_workers:
            _run_in_processes(tasks, min(num_workers, len(tasks)), bar)
        else:
            for task in tasks:
                task.run(bar.update)


def _run_in_processes(tasks: list[_Task], num_workers: int, bar: "tqdm[Any]") -> None:
    already = bar.n
    with _pool(num_workers) as (pool, counter):
        with _hidden_main():
            pending = {pool.submit(_run_task, task) for task in tasks}
        while pending:
            done, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
            for future in done:
                future.result()
            bar.update(already + counter.value - bar.n)


@contextmanager
def _pool(num_workers: int) -> "Iterator[tuple[ProcessPoolExecutor, Synchronized[int]]]":
    """Give a pool whose processes end with the block or with this process, whatever ends it.

    Each of them waits for the end of a pipe that only this process holds open.
    """
    context = get_context("spawn")
    counter = context.Value("q", 0)
    lifeline, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(lifeline, counter)
    )
    try:
        yield pool, counter
        pool.shutdown()
    finally:
        our_end.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep processes that are started meanwhile from importing the script that started this one.

    They need none of it: it is all of Kedro's command line, or a script without a guard.
    """
    main = sys.modules["__main__"]
    names = [name for name in ("__file__", "__spec__") if name in vars(main)]
    hidden: dict[str, Any] = {name: vars(main)[name] for name in names}
    vars(main).update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        vars(main).update(hidden)


_counter: "Synchronized[int]"  # of a worker process: images done by all of them


def _start_worker(lifeline: Connection, counter: "Synchronized[int]") -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    threading.Thread(target=_leave_at_end_of, args=(lifeline,), daemon=True).start()


def _leave_at_end_of(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _run_task(task: _Task) -> None:
    task.run(_count)


def _count() -> None:
    with _counter.get_lock():
        _counter.value += 1


@contextmanager
def _only_run_in(scratch: Path) -> Iterator[None]:
    """Hold a lock on `scratch`; the system releases it when the process ends."""
    with (scratch / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another run makes image shards in {scratch}; wait for it, or stop it"
            ) from None
        yield


def _check_space(directory: Path, num_images: int, resolution: int) -> None:
    needed = num_images * (resolution**2 * 3 + _BYTES_PER_ROW)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ValueError(
            f"{directory}: {num_images:,} images of {resolution} x {resolution} need "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, or put data_root on "
            "another disk"
        )


def _check_rejects(shards: Shards, max_share: float) -> None:
    """Name the rejects in the log, or in an error if they are too many."""
    rejects = shards.manifest[shards.manifest["reason"].notna()]
    if rejects.empty:
        return
    share = len(rejects) / len(shards.manifest)
    named = rejects[["source", "reason"]].head(_REJECTS_NAMED).itertuples(index=False, name=None)
    listed = "".join(f"\n  {source}: {reason}" for source, reason in named)
    listed += "\n  ..." if len(rejects) > _REJECTS_NAMED else ""
    if share > max_share:
        raise ValueError(
            f"{len(rejects)} of {len(shards.manifest)} images were rejected, a share of "
            f"{share:.3g}, more than preprocess.max_reject_share = {max_share:.3g}: mend them, or "
            f"raise the limit, which makes no shard anew{listed}"
        )
    logger.warning("%d of %d images rejected:%s", len(rejects), len(shards.manifest), listed)
