"""Files that are either whole or absent: temporary name, fsync, rename."""

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ELSEWHERE = "keep data on another disk (data_root in globals.yml; under DVC, a mount)"
_LOCK_PATIENCE, _LOCK_POLL = 10.0, 0.1  # seconds
_hashed: dict[tuple[Path, int, int], str] = {}


class DamagedError(ValueError):
    """A file is not what was written."""


def temporary_name(path: Path) -> Path:
    """Return a hidden sibling of `path` for something not yet complete."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` if the block succeeds.

    The content is flushed to disk before the rename, so a reader, a crash or a power cut sees the
    old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with naming_full_disk(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers make their files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Make an OSError of a disk or quota that is full name what was being written, and the remedy.

    Args:
        path: The file that the block writes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_IS_FULL and not _is_copy_to_full_disk(error):
            raise
        raise OSError(
            f"{path}: cannot be written, the disk is full ({error.strerror or error}): make room, "
            f"or {_ELSEWHERE}, and run again: what is finished is kept"
        ) from error


def _is_copy_to_full_disk(error: OSError) -> bool:
    """Tell by the errors of single files, which `shutil` hands over as text."""
    if not isinstance(error, shutil.Error):
        return False
    return any(os.strerror(code) in str(error) for code in _DISK_IS_FULL)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically, with keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def origin_of(path: Path) -> Path:
    """Return where it is noted where a downloaded file came from: {"url", "sha256"}."""
    return path.with_name(f"{path.name}.origin.json")


def read_arrays(path: Path) -> "dict[str, np.ndarray]":
    """Return all arrays of an npz file, in memory; arrays of Python objects are refused."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write_arrays(path: Path, arrays: "Mapping[str, np.ndarray]") -> None:
    """Write arrays as an uncompressed npz file, atomically; equal arrays give equal bytes."""
    import numpy as np

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle


def publish_directory(source: Path, target: Path) -> None:
    """Rename the finished directory `source` to `target`, replacing what stood there.

    The old directory is moved aside before and deleted after, so that `target` is at every moment
    the old one, the new one or, between two renames, absent.

    Raises:
        OSError: If the source is gone, or the target is on another file system that is full.
        ValueError: If that file system is seen to be too small beforehand.
    """
    if source.resolve() == target.resolve():
        return
    if not source.is_dir():
        raise OSError(
            f"{source}: is gone before it could be moved to {target}; another run has published "
            "or removed it meanwhile: run one at a time"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        if leftover != source:  # of a run that was killed in here
            _remove(leftover)
    aside, staged = temporary_name(target), source
    if source.stat().st_dev != target.parent.stat().st_dev:  # no rename between file systems
        staged = _copied(source, target)
    if target.exists():
        target.rename(aside)
    staged.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
    if source.exists():
        gone = temporary_name(source)  # never half removed under its own name
        source.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _copied(source: Path, target: Path) -> Path:
    """Copy a directory beside `target`, on its file system, flushed to the disk."""
    num_bytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    check_space(target.parent, num_bytes, f"the files of {target.name}, which are copied,")
    staged = temporary_name(target)
    try:
        with naming_full_disk(target):
            shutil.copytree(source, staged)
            for file in staged.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return staged


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_once(path: Path) -> str:
    """Return the hex sha256 of a file; hash it again only when its size or its time changed."""
    state = path.stat()
    key = (path.resolve(), state.st_size, state.st_mtime_ns)
    if key not in _hashed:
        _hashed[key] = sha256_of(path)
    return _hashed[key]


def fingerprint(*parts: Any, digits: int = 16) -> str:
    """Return hex digits that change when any JSON-representable part changes; at most 64."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


@contextmanager
def job(scratch: Path, name: str, *, shared: bool = False) -> Iterator[Path]:
    """Give a long job its directory, alone, and say whether it goes on or starts anew.

    Args:
        scratch: Where a stage of one row or dataset keeps its unfinished jobs.
        name: Fingerprint of all that determines the job's result.
        shared: Whether others may do their shares of the job meanwhile; each of them says so.

    Yields:
        `scratch/name`, made when absent. What a job has to write down beside its result goes to
        siblings of it, such as `scratch/name.json`.

    Raises:
        ValueError: If another process is at work in this scratch folder.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    # To read and write: a shared lock on NFS needs the one, an exclusive lock the other.
    with (scratch / ".lock").open("a+b") as lock:
        try:
            _lock(lock, scratch, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in {scratch}; wait for it to end, or end it"
            ) from None
        directory = scratch / name
        if not shared:
            _sweep(scratch)
        others = sorted(
            other.name for other in scratch.iterdir() if other.is_dir() and not other.suffix
        )
        if name in others:
            logger.info("Going on with the unfinished job in %s", directory)
        elif others:
            logger.info(
                "Starting anew in %s: parameters, inputs, code or versions differ from those of "
                "the unfinished %s beside it",
                directory,
                ", ".join(others),
            )
        directory.mkdir(exist_ok=True)
        try:
            yield directory
        finally:
            if not shared:
                _sweep(scratch)


def _sweep(scratch: Path) -> None:
    """Remove what killed writers left, but not what a writer is still at work on."""
    for leftover in [*scratch.glob(".*.tmp"), *scratch.glob("*/.*.tmp")]:
        if leftover.is_dir() or not _is_locked(leftover):
            _remove(leftover)


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb+") as file:
            _lock(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@contextmanager
def locked_file(path: Path) -> Iterator[BinaryIO]:
    """Give an empty file to write, to nobody else meanwhile; what a killed writer left is gone.

    The file may be renamed within the block.

    Raises:
        ValueError: If another process is writing it, and still is after some seconds.
    """
    until = time.monotonic() + _LOCK_PATIENCE  # an orphan of a killed run ends in less
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "rb+") as file:
            try:
                _lock(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ValueError(
                        f"{path}: another run is writing it; wait for it to end, or end it"
                    ) from None
                time.sleep(_LOCK_POLL)
                continue
            # Whoever had the lock may have renamed what was opened here: that is theirs.
            if _is_at(path, file):
                file.truncate(0)
                yield file
                return


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside a block with this lock file; then run the block."""
    with lock.open("a+b") as file:
        _lock(file, lock, fcntl.LOCK_EX)
        yield


def _lock(file: IO[bytes], path: Path, how: int) -> None:
    """Lock an open file; say so if its file system knows no locks."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"{path}: cannot be locked ({error.strerror}): mount its file system with locks "
            f"(Lustre: -o flock), or {_ELSEWHERE}"
        ) from error


def start_writing(file: IO[bytes], offset: int, num_bytes: int) -> None:
    """Let the kernel begin to write a range of a file to disk, so that fsync has less to wait for.

    Nothing is guaranteed by it; outside of Linux it does nothing.
    """
    if _sync_file_range is not None:
        start, length = ctypes.c_int64(offset), ctypes.c_int64(num_bytes)
        _sync_file_range(file.fileno(), start, length, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


def check_space(directory: Path, num_bytes: int, what: str) -> None:
    """Raise ValueError if `directory` has less than `num_bytes` left; say how much is missing.

    Args:
        directory: Where the bytes are to go; it exists.
        num_bytes: Bytes needed.
        what: What needs them, for the message.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise ValueError(
            f"{what} need {num_bytes / 1e9:.1f} GB in {directory}, where {free / 1e9:.1f} GB are "
            f"free: make room, or {_ELSEWHERE}"
        )


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
