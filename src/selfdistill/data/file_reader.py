"""Raw images that are files in class folders, or members of ImageNet's tars."""

import os
import tarfile
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

from selfdistill.data.raw import RawImage, digest_of

_SUFFIXES = frozenset({"jpeg", "jpg", "png", "bmp", "gif", "pgm", "ppm", "tif", "tiff", "webp"})
_SCAN_THREADS = 16  # they hide the latency of network file systems, not computation


class _Span(NamedTuple):
    """An image: a byte range of a file."""

    key: str
    label: int
    file: str  # relative to the reader's root
    offset: int
    size: int

    @property
    def source(self) -> str:
        return self.file if self.file == self.key else f"{self.file}:{self.key}"


class _ClassTar(NamedTuple):
    """The images of a class: a tar that is a byte range of a file."""

    class_name: str
    file: str  # relative to the reader's root
    offset: int
    size: int


class _Member(NamedTuple):
    """An image in a class tar; the offset counts from the start of the file that holds the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class FileReader:
    """Images that are files, or byte ranges of uncompressed archives.

    Attributes:
        root: Folder of the files.
        class_names: Names in the order of the labels.
        spans: The images in order, those of one file together.
    """

    root: Path
    class_names: list[str]
    spans: list[_Span] = field(repr=False)

    def __len__(self) -> int:
        return len(self.spans)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of keys and sizes: the same for folders and tars of the same images."""
        return digest_of(f"{span.key}\0{span.size}" for span in self.spans)

    def iterate(self) -> Iterator[RawImage]:
        """Read the images in order.

        Raises:
            OSError: If a file cannot be read, or is shorter than when it was scanned.
        """
        for file, spans in groupby(self.spans, key=lambda span: span.file):
            with (self.root / file).open("rb") as stream:
                for span in spans:
                    stream.seek(span.offset)
                    data = stream.read(span.size)
                    if len(data) != span.size:
                        raise OSError(f"{self.root / file}: is shorter than when it was scanned")
                    yield RawImage(span.key, span.label, span.source, data)

    def part(self, start: int, stop: int) -> Self:
        """Return a reader of images [start, stop) only."""
        return replace(self, spans=self.spans[start:stop])

    def sources(self) -> dict[str, tuple[str, int]]:
        """Return the source and the label of each key."""
        return {span.key: (span.source, span.label) for span in self.spans}


def scan_class_folders(root: Path) -> FileReader:
    """Index `root/<class>/<image>`; the sorted folder names are the classes.

    Raises:
        ValueError: If there are no class folders, or one of them holds no images.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: is a file; for ImageNet's tar use layout: imagenet_tar")
    folders = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    if not folders:
        raise ValueError(f"{root}: no class folders; images must lie in {root / '<class>'}")
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        found = list(pool.map(lambda folder: _images_in(root / folder), folders))
    _check_no_class_is_empty(root, folders, found)
    spans = [
        _Span(key := f"{folder}/{name}", label, key, 0, size)
        for label, (folder, images) in enumerate(zip(folders, found, strict=True))
        for name, size in images
    ]
    return FileReader(root, folders, spans)


def scan_imagenet_tar(path: Path) -> FileReader:
    """Index ILSVRC2012_img_train.tar, a tar of one tar a class, or a folder of class tars.

    Keys, labels and order are those of the extracted class folders.

    Raises:
        ValueError: If the file is not such a tar, is truncated, or a class holds no images.
    """
    if path.is_dir():
        root, tars = path, _class_tars_in_folder(path)
    else:
        root, tars = path.parent, _class_tars_in_tar(path)
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        found = list(pool.map(lambda tar: _images_in_tar(root, tar), tars))
    class_names = [tar.class_name for tar in tars]
    _check_no_class_is_empty(path, class_names, found)
    spans = [
        _Span(f"{tar.class_name}/{member.name}", label, tar.file, member.offset, member.size)
        for label, (tar, members) in enumerate(zip(tars, found, strict=True))
        for member in members
    ]
    return FileReader(root, class_names, spans)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _is_image(name: str) -> bool:
    last = _last(name)
    return not last.startswith(".") and last.rpartition(".")[2].lower() in _SUFFIXES


def _is_class_tar(name: str) -> bool:
    return not _last(name).startswith(".") and name.endswith(".tar")


def _images_in(folder: Path) -> list[tuple[str, int]]:
    """Return the names and sizes of the images in a folder, sorted by name."""
    return sorted(
        (entry.name, entry.stat().st_size)
        for entry in _entries(folder)
        if _is_image(entry.name) and entry.is_file()
    )


def _check_no_class_is_empty(path: Path, names: Sequence[str], images: Sequence[Sized]) -> None:
    empty = [name for name, found in zip(names, images, strict=True) if not found]
    if empty:
        listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"{path}: {len(empty)} of {len(names)} classes hold no images: {listed}; add their "
            f"images ({', '.join(sorted(_SUFFIXES))}) or remove them"
        )


def _tar_members(path: Path, start: int, stop: int) -> Iterator[tarfile.TarInfo]:
    """Read the headers of the files in the uncompressed tar that is bytes [start, stop) of a file.

    Their offsets count from the start of the file.
    """
    with path.open("rb") as stream:
        stream.seek(start)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    if member.offset >= stop:  # a tar without an end mark: this is the next one's
                        return
                    if member.offset_data + member.size > stop:
                        raise tarfile.ReadError(f"{member.name} is cut off")
                    if member.isfile():
                        yield member
        except tarfile.TarError as error:
            raise ValueError(f"{path}: not a whole, uncompressed tar: {error}") from error


def _class_tars_in_tar(path: Path) -> list[_ClassTar]:
    """Return the class tars in a tar, sorted by class."""
    members = list(_tar_members(path, 0, path.stat().st_size))
    tars = sorted(
        _ClassTar(_last(member.name)[:-4], path.name, member.offset_data, member.size)
        for member in members
        if _is_class_tar(member.name)
    )
    if not tars:
        raise ValueError(
            f"{path}: holds no class tars but {', '.join(m.name for m in members[:3]) or 'nothing'}"
            "; use ILSVRC2012_img_train.tar, which holds n01440764.tar and so on"
        )
    return tars


def _class_tars_in_folder(folder: Path) -> list[_ClassTar]:
    """Return the class tars in a folder, sorted by class."""
    tars = sorted(
        _ClassTar(entry.name[:-4], entry.name, 0, entry.stat().st_size)
        for entry in _entries(folder)
        if _is_class_tar(entry.name)
    )
    if not tars:
        raise ValueError(
            f"{folder}: no class tars (n01440764.tar, ...) here; for ILSVRC2012_img_train.tar name "
            "the file itself, for extracted images use layout: class_folders"
        )
    return tars


def _images_in_tar(root: Path, tar: _ClassTar) -> list[_Member]:
    """Return the images in a class tar, sorted by name.

    A name that occurs twice counts once, the later one: so does `tar` when it extracts.
    """
    images = {
        name: _Member(name, member.offset_data, member.size)
        for member in _tar_members(root / tar.file, tar.offset, tar.offset + tar.size)
        if _is_image(name := member.name.removeprefix("./").removeprefix(f"{tar.class_name}/"))
    }
    return sorted(images.values())
