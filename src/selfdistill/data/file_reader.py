"""Raw images that are files, in class folders or not, or members of ImageNet's tars."""

import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

from selfdistill.data.raw import RawImage, digest_of, unreadable

_SUFFIXES = frozenset({"jpeg", "jpg", "png", "bmp", "gif", "pgm", "ppm", "tif", "tiff", "webp"})
_SCAN_THREADS = 16  # they hide the latency of network file systems, not computation
UNLABELLED = "unlabelled"  # the one class of images without classes


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


class ClassImages(NamedTuple):
    """The images of a class, sorted by name."""

    keys: list[str]
    offsets: np.ndarray  # (N,), int64
    sizes: np.ndarray  # (N,), int64


@dataclass(frozen=True, eq=False)
class FileReader:
    """Images that are files, or byte ranges of uncompressed archives.

    The index is held by columns: ImageNet's 1.28 million images take some 70 MB.

    Attributes:
        root: Folder of the files.
        class_names: Names in the order of the labels.
        keys: Names of the images in order, those of a class together.
        labels: Their class indices, (N,), int32.
        offsets: Their first bytes in their files, (N,), int64.
        sizes: Their numbers of bytes, (N,), int64.
        archives: The file that holds a class, by label, relative to the root; None: each image is
            the file that its key names.
    """

    root: Path
    class_names: list[str]
    keys: "pa.StringArray" = field(repr=False)
    labels: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    archives: list[str] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        root: Path,
        class_names: list[str],
        images: Sequence[ClassImages],
        archives: list[str] | None = None,
    ) -> Self:
        """Return a reader of the images of all classes."""
        import pyarrow as pa

        counts = [len(each.keys) for each in images]
        return cls(
            root,
            class_names,
            pa.concat_arrays([_as_text(root, each.keys) for each in images]),
            np.repeat(np.arange(len(images), dtype=np.int32), counts),
            np.concatenate([each.offsets for each in images]),
            np.concatenate([each.sizes for each in images]),
            archives,
        )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of keys and sizes: the same for folders and tars of the same images."""
        pairs = zip(self.keys, self.sizes, strict=True)
        return digest_of(f"{key.as_py()}\0{size}" for key, size in pairs)

    def iterate(self) -> Iterator[RawImage]:
        """Read the images in order.

        Raises:
            OSError: If a file cannot be read, or is shorter than when it was scanned.
        """
        for file, images in groupby(range(len(self)), key=self._file):
            path = self.root / file
            try:
                with path.open("rb") as stream:
                    for index in images:
                        key, size = self.keys[index].as_py(), int(self.sizes[index])
                        stream.seek(int(self.offsets[index]))
                        data = stream.read(size)
                        if len(data) != size:
                            raise OSError("it is shorter than when it was scanned")
                        source = file if self.archives is None else f"{file}:{key}"
                        yield RawImage(key, int(self.labels[index]), source, data)
            except OSError as error:
                raise unreadable(path, error) from error

    def part(self, start: int, stop: int) -> Self:
        """Return a reader of images [start, stop) only."""
        import pyarrow as pa

        mine = slice(start, stop)
        return replace(
            self,
            # A copy: a slice of an Arrow array travels with all of its buffer.
            keys=pa.array(self.keys[mine].to_pylist(), pa.string()),
            labels=self.labels[mine],
            offsets=self.offsets[mine],
            sizes=self.sizes[mine],
        )

    def _file(self, index: int) -> str:
        if self.archives is not None:
            return self.archives[self.labels[index]]
        file: str = self.keys[index].as_py()
        return file


def _as_text(root: Path, keys: list[str]) -> "pa.StringArray":
    """Return names as an Arrow array; ValueError names the first that is no text."""
    import pyarrow as pa

    try:
        return pa.array(keys, pa.string())
    except UnicodeEncodeError as error:
        key = next(key for key in keys if not _is_text(key))
        raise ValueError(f"{root}: the name {key!r} is not UTF-8; rename the file") from error


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def scan_class_folders(root: Path) -> FileReader:
    """Index `root/<class>/<image>`; the sorted folder names are the classes.

    Raises:
        ValueError: If there are no class folders, or one of them holds no images.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: is a file; for ImageNet's tar use layout: imagenet_tar")
    folders = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    if not folders:
        raise ValueError(
            f"{root}: no class folders; images must lie in {root / '<class>'}, or without classes, "
            "take layout: unlabelled"
        )
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        found = list(pool.map(lambda folder: _images_in_folder(root, folder), folders))
    _check_no_class_is_empty(root, folders, found)
    return FileReader.of(root, folders, found)


def scan_unlabelled(root: Path) -> FileReader:
    """Index all images below a folder, sorted by path, as images of one class.

    Raises:
        ValueError: If there are none, or a link leads to a folder that is there already.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: is a file; name a folder of images, or a zip with layout: edm")
    images = images_below(root)
    if not images.keys:
        raise ValueError(f"{root}: holds no images; put some ({_suffixes()}) anywhere below it")
    return FileReader.of(root, [UNLABELLED], [images])


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
    return FileReader.of(root, class_names, found, [tar.file for tar in tars])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _suffixes() -> str:
    return ", ".join(sorted(_SUFFIXES))


def is_image(name: str) -> bool:
    """Return whether the name of a file is that of an image, and not hidden."""
    last = _last(name)
    return not last.startswith(".") and last.rpartition(".")[2].lower() in _SUFFIXES


def _is_class_tar(name: str) -> bool:
    return not _last(name).startswith(".") and name.endswith(".tar")


def images_below(root: Path) -> ClassImages:
    """Return the images anywhere below a folder, sorted by path; hidden ones are left out.

    Raises:
        ValueError: If a link leads to a folder that is there already.
    """
    members: list[_Member] = []
    folders, seen = [""], {root.resolve()}
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        while folders:
            inside = list(pool.map(lambda folder: _entries(root / folder), folders))
            sizes = pool.map(_sizes_of_images, inside)
            below = []
            for folder, entries, found in zip(folders, inside, sizes, strict=True):
                prefix = f"{folder}/" if folder else ""
                members += (_Member(prefix + name, 0, size) for name, size in found)
                below += [prefix + entry.name for entry in entries if entry.is_dir()]
            for folder in below:
                place = (root / folder).resolve()
                if place in seen:
                    raise ValueError(f"{root / folder}: is read already; remove the link")
                seen.add(place)
            folders = below
    members.sort()
    return _of_members([member.name for member in members], members)


def _sizes_of_images(entries: Iterable[os.DirEntry[str]]) -> list[tuple[str, int]]:
    images = (entry for entry in entries if is_image(entry.name) and entry.is_file())
    return [(entry.name, entry.stat().st_size) for entry in images]


def _class_images(class_name: str, found: Iterable[_Member]) -> ClassImages:
    members = sorted(found)
    return _of_members([f"{class_name}/{member.name}" for member in members], members)


def _of_members(keys: list[str], members: Sequence[_Member]) -> ClassImages:
    return ClassImages(
        keys,
        np.array([member.offset for member in members], dtype=np.int64),
        np.array([member.size for member in members], dtype=np.int64),
    )


def _images_in_folder(root: Path, folder: str) -> ClassImages:
    """Return the images in a class folder."""
    return _class_images(
        folder,
        (_Member(name, 0, size) for name, size in _sizes_of_images(_entries(root / folder))),
    )


def _check_no_class_is_empty(
    path: Path, names: Sequence[str], images: Sequence[ClassImages]
) -> None:
    empty = [name for name, found in zip(names, images, strict=True) if not found.keys]
    if empty:
        listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"{path}: {len(empty)} of {len(names)} classes hold no images: {listed}; add their "
            f"images ({_suffixes()}) or remove them"
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


def _images_in_tar(root: Path, tar: _ClassTar) -> ClassImages:
    """Return the images in a class tar.

    A name that occurs twice counts once, the later one: so does `tar` when it extracts.
    """
    images = {
        name: _Member(name, member.offset_data, member.size)
        for member in _tar_members(root / tar.file, tar.offset, tar.offset + tar.size)
        if is_image(name := member.name.removeprefix("./").removeprefix(f"{tar.class_name}/"))
    }
    return _class_images(tar.class_name, images.values())
