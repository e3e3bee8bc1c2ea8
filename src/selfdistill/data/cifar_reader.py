"""CIFAR-10 as its authors publish it: the binary version and the Python version.

Nothing is extracted, and the Python version's pickles are not executed. Images are handed on as
portable pixmaps, which lose nothing.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from selfdistill.data.array_pickle import read_array_pickle
from selfdistill.data.raw import RawImage, digest_of, unreadable

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_PIXMAP = b"P6 %d %d 255\n" % (_SIDE, _SIDE)
_BATCHES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}


class _Version(NamedTuple):
    """How the files of a version are called."""

    folder: str
    suffix: str
    names: str


_VERSIONS = (
    _Version("cifar-10-batches-bin", ".bin", "batches.meta.txt"),
    _Version("cifar-10-batches-py", "", "batches.meta"),
)


class _Batch(NamedTuple):
    name: str
    num_images: int
    sha256: str  # of labels and pixels


@dataclass(frozen=True, eq=False)
class CifarReader:
    """Images of CIFAR-10's batches.

    Attributes:
        path: The archive, or the folder that was in it.
        version: Which of the two it is.
        class_names: Names in the order of the labels.
        batches: The batches of the split in order.
        labels: Class indices of this reader's images, (N,), int64.
        first: Place of its first image among the images of all batches.
    """

    path: Path
    version: _Version
    class_names: list[str]
    batches: tuple[_Batch, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    first: int = 0

    @property
    def root(self) -> Path:
        """Folder of the archive, or of the batches."""
        return self.path if self.path.is_dir() else self.path.parent

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of class names, and of the content of the batches: equal for versions."""
        facts = [f"{batch.name}\0{batch.num_images}\0{batch.sha256}" for batch in self.batches]
        return digest_of([*self.class_names, *facts, self.labels.tobytes().hex()])

    def iterate(self) -> Iterator[RawImage]:
        """Read the images in order, a batch at most in memory.

        Raises:
            OSError: If the archive or a batch cannot be read, or is not what was scanned.
        """
        begin, end, passed = self.first, self.first + len(self), 0
        for batch in self.batches:
            start, stop = max(begin - passed, 0), min(end - passed, batch.num_images)
            if start < stop:
                for number, data in self._images(batch, start, stop):
                    label = int(self.labels[passed + number - self.first])
                    source = f"{batch.name}{self.version.suffix}:{number}"
                    if not self.path.is_dir():
                        source = f"{self.path.name}:{source}"
                    yield RawImage(f"{batch.name}/{number:05d}", label, source, data)
            passed += batch.num_images

    def part(self, start: int, stop: int) -> Self:
        """Return a reader of images [start, stop) only."""
        return replace(self, labels=self.labels[start:stop], first=self.first + start)

    def _images(self, batch: _Batch, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        file = self.path / (batch.name + self.version.suffix) if self.path.is_dir() else self.path
        try:
            labels, pixels = _read_batch(self.path, self.version, batch.name)
        except (OSError, ValueError) as error:
            raise unreadable(file, error) from error
        if _digest(labels, pixels) != batch.sha256:
            raise unreadable(file, ValueError("it is not what was scanned"))
        for number in range(start, stop):
            planes = pixels[number].reshape(3, _SIDE, _SIDE)
            yield number, _PIXMAP + planes.transpose(1, 2, 0).tobytes()


def scan_cifar10(path: Path, split: str) -> CifarReader:
    """Index cifar-10-binary.tar.gz, cifar-10-python.tar.gz, or the folder that is in either.

    Args:
        path: The archive or the folder.
        split: "train", 50,000 images, or "test", 10,000.

    Raises:
        ValueError: If it is neither, is damaged, or the split is none of the two.
    """
    if split not in _BATCHES:
        raise ValueError(f"{path}: CIFAR-10 has no split {split!r}; take train or test")
    version = _version(path)
    try:
        read = {name: _read_batch(path, version, name) for name in _BATCHES[split]}
        names = _class_names(path, version)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not CIFAR-10, or is damaged: {error}; fetch it again"
        ) from error
    batches = tuple(
        _Batch(name, len(labels), _digest(labels, pixels))
        for name, (labels, pixels) in read.items()
    )
    labels = np.concatenate([labels for labels, _ in read.values()])
    if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"{path}: holds no images, or labels beyond its {len(names)} classes; fetch it again"
        )
    return CifarReader(path, version, names, batches, labels)


def _version(path: Path) -> _Version:
    """Return which version a folder or an archive holds."""
    with _files_of(path) as files:
        for version in _VERSIONS:
            if files.has(version.names if path.is_dir() else f"{version.folder}/{version.names}"):
                return version
    wanted = " or ".join(version.folder for version in _VERSIONS)
    raise ValueError(
        f"{path}: holds neither version of CIFAR-10; name cifar-10-binary.tar.gz, "
        f"cifar-10-python.tar.gz, or the folder {wanted}; of Parquet files the layout is parquet"
    )


class _Files(NamedTuple):
    """The files of a folder or of an open archive."""

    folder: Path | None
    archive: tarfile.TarFile | None

    def has(self, name: str) -> bool:
        if self.archive is None:
            assert self.folder is not None
            return (self.folder / name).is_file()
        return name in self.archive.getnames()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        if self.archive is None:
            assert self.folder is not None
            with (self.folder / name).open("rb") as file:
                yield file
            return
        try:
            found = self.archive.extractfile(name)
        except KeyError:
            found = None
        if found is None:
            raise ValueError(f"{name} is absent")
        with found:
            yield found


@contextmanager
def _files_of(path: Path) -> Iterator[_Files]:
    if path.is_dir():
        yield _Files(path, None)
        return
    try:
        with tarfile.open(path, "r:*") as archive:
            yield _Files(None, archive)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole tar: {error}; fetch it again") from error


def _content(path: Path, version: _Version, name: str) -> bytes:
    with (
        _files_of(path) as files,
        files.open(name if path.is_dir() else f"{version.folder}/{name}") as file,
    ):
        return file.read()


def _read_batch(path: Path, version: _Version, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, (N,) int64, and pixels by channel and row, (N, 3072) uint8, of a batch."""
    content = _content(path, version, name + version.suffix)
    if version.suffix:
        if len(content) % (_PIXELS + 1):
            raise ValueError(f"{name}{version.suffix} ends within an image")
        records = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + 1)
        return records[:, 0].astype(np.int64), records[:, 1:]
    batch = _unpickled(content, name)
    labels, pixels = np.asarray(batch.get("labels")), batch.get("data")
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and labels.dtype.kind == "i"
        and pixels.shape == (labels.size, _PIXELS)
    ):
        raise ValueError(f"{name} holds no images with labels")
    return labels.astype(np.int64).ravel(), pixels


def _class_names(path: Path, version: _Version) -> list[str]:
    content = _content(path, version, version.names)
    if version.suffix:
        return content.decode("utf-8").split()
    names = _unpickled(content, version.names).get("label_names")
    if not isinstance(names, list):
        raise ValueError(f"{version.names} names no classes")
    return [name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in names]


def _unpickled(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = read_array_pickle(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no dict")
    return found


def _digest(labels: np.ndarray, pixels: np.ndarray) -> str:
    digest = hashlib.sha256(labels.astype(np.int64).tobytes())
    digest.update(pixels.tobytes())
    return digest.hexdigest()
