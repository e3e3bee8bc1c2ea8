"""Readers of raw images: class folders, ImageNet's tars, Hugging Face Parquet.

A reader is an index, made by one scan: which images there are, in which order, with which labels.
It holds no open file and no pixel, travels to other processes, and reads the bytes of a share of
the images when asked. Nothing is extracted, nothing is written.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self, get_args

Layout = Literal["class_folders", "imagenet_tar", "parquet"]


@dataclass(frozen=True)
class RawImage:
    """An image as it was found.

    Attributes:
        key: Its name, unique in its set.
        label: Class index in [0, number of classes).
        source: Where it comes from: a path, or archive and member, relative to the set's place.
        data: The bytes of the image file, not looked at.
    """

    key: str
    label: int
    source: str
    data: bytes = field(repr=False)


class Reader(Protocol):
    """An ordered set of raw images with classes."""

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the labels."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of keys and sizes; no image is read for it."""

    def __len__(self) -> int:
        """Number of images."""

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[RawImage]:
        """Read images [start, stop) in order; OSError if one of them cannot be read."""

    def part(self, start: int, stop: int) -> Self:
        """Return a reader of images [start, stop) only, small to send to another process."""

    def sources(self) -> dict[str, tuple[str, int]]:
        """Return the source and the label of each key."""


def open_reader(path: Path, layout: Layout, split: str | None = None) -> Reader:
    """Scan raw images.

    Args:
        path: A folder of class folders; ILSVRC2012_img_train.tar or a folder of class tars; a
            Parquet file or a folder of them.
        layout: Which of the three it is.
        split: Parquet files whose names start with this, e.g. "train"; the other layouts are one
            split each.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If what is there has another layout or no images, or a class has none.
    """
    from selfdistill.data.file_reader import scan_class_folders, scan_imagenet_tar
    from selfdistill.data.parquet_reader import ParquetReader

    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(get_args(Layout))}")
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no raw images here; put them there, or name their place in the catalog entry"
        )
    if layout == "parquet":
        return ParquetReader.scan(path, split)
    if split is not None:
        raise ValueError(f"{path}: layout {layout} has no splits; remove split: {split}")
    return scan_class_folders(path) if layout == "class_folders" else scan_imagenet_tar(path)


def digest_of(parts: Iterable[str]) -> str:
    """Return 16 hex digits of lines of text, however many."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:16]
