"""Files that are either whole or absent: temporary name, fsync, rename."""

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22


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
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically, with keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def publish_directory(source: Path, target: Path) -> None:
    """Rename the finished directory `source` to `target`, replacing what stood there.

    The old directory is moved aside before and deleted after, so that `target` is at every moment
    the old one, the new one or, between two renames, absent.
    """
    if source.resolve() == target.resolve():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside, staged = temporary_name(target), source
    if source.stat().st_dev != target.parent.stat().st_dev:  # no rename between file systems
        staged = shutil.copytree(source, temporary_name(target))
    if target.exists():
        target.rename(aside)
    staged.rename(target)
    for leftover in (aside, source):
        shutil.rmtree(leftover, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return 16 hex digits that change when any JSON-representable part changes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_fingerprint(*packages: str) -> str:
    """Return 16 hex digits of the Python sources of sub-packages or modules of selfdistill.

    Args:
        packages: Paths relative to the package, e.g. "methods" or "draws.py".
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for package in sorted(packages):
        place = root / package
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def job_directory(scratch: Path, job: str) -> Path:
    """Return the directory of an unfinished job, made when absent; say whether it goes on.

    Args:
        scratch: Where this stage keeps its unfinished jobs.
        job: Fingerprint of all that determines the job's result.
    """
    directory = scratch / job
    if directory.is_dir():
        logger.info("Going on with the unfinished job in %s", directory)
    elif others := sorted(other.name for other in scratch.glob("*") if other.is_dir()):
        logger.info(
            "Starting anew in %s: parameters, inputs, code or versions differ from those of the "
            "unfinished job(s) %s beside it",
            directory,
            ", ".join(others),
        )
    directory.mkdir(parents=True, exist_ok=True)
    return directory
