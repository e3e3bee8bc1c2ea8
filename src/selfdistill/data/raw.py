"""What a reader of raw images has to be.

A reader is an index, made by one scan: which images there are, in which order, with which labels.
It holds no open file and no pixel, travels to other processes, and reads the bytes of a share of
the images when asked. Nothing is extracted, nothing is written.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self


@dataclass(frozen=True)
class RawImage:
    """An image as it was found.

    Attributes:
        key: Its name, unique in its dataset.
        label: Class index in [0, number of classes).
        source: Where it comes from: a path, or archive and member, relative to the dataset's place.
        data: The bytes of the image file, not looked at.
    """

    key: str
    label: int
    source: str
    data: bytes = field(repr=False)


class Reader(Protocol):
    """Raw images with classes, in a fixed order."""

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the labels."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what the scan has seen; no image is read for it."""

    def __len__(self) -> int:
        """Number of images."""

    def iterate(self) -> Iterator[RawImage]:
        """Read the images in order; an OSError names the file that cannot be read."""

    def part(self, start: int, stop: int) -> Self:
        """Return a reader of images [start, stop) only, small to send to another process."""


def digest_of(parts: Iterable[str]) -> str:
    """Return 16 hex digits of lines of text, however many."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:16]


def unreadable(path: Path, error: Exception) -> OSError:
    """Return the error to raise of a file that was there when it was scanned."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OSError(
        f"{path}: cannot be read: {reason}; make it readable and run again: finished shards are "
        "kept (removed, it makes another dataset, which starts anew)"
    )
