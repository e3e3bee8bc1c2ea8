"""Images and reference statistics in an npz file, as ADM's evaluator exchanges them.

    arr_0                     images, uint8 (N, H, W, 3)
    arr_1                     labels, integers (N,); may be absent
    mu, sigma, mu_s, sigma_s  moments of the pooled and of the spatial features of a larger set;
                              either pair, both or neither

50,000 images of 256 x 256 are 9.8 GB, so they are never in memory at once: pixels that are stored
(`np.savez`) are mapped, pixels that are compressed (`np.savez_compressed`) are streamed. Nothing in
a file is executed: arrays of Python objects are refused.
"""

import hashlib
import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

_IMAGES, _LABELS = "arr_0", "arr_1"
_STATISTICS = {"mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023)}
_PAIRS = (("mu", "sigma"), ("mu_s", "sigma_s"))
_KINDS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # what NumPy writes
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of name and extra field
_CHUNK = 1 << 22


class _Header(NamedTuple):
    """What an npz file says of one of its arrays.

    `start` is the offset of the first element in the file, None if the array is compressed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    start: int | None


@dataclass(frozen=True, eq=False)
class NpzImages:
    """The images of an npz file: a handle, small to send to another process.

    Attributes:
        path: The file.
        keys: Names of its arrays.
        shape: Shape of an image, (H, W, 3); empty if the file has statistics only.
        labels: Class indices, (N,), int64; -1 where the file has none.
        start: Offset of the first pixel in the file; None if the pixels are compressed.
    """

    path: Path
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    labels: np.ndarray = field(repr=False)
    start: int | None = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file after checking all that can be checked without reading pixels.

        Raises:
            FileNotFoundError: If there is no file at `path`.
            ValueError: If it is not a whole npz file, has neither images nor statistics, or its
                images or labels are not of the kind described above.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no npz file here; check the path")
        with _archive(path) as archive:
            names = archive.namelist()
            keys = tuple(name.removesuffix(".npy") for name in names if name.endswith(".npy"))
            if _IMAGES not in keys and not set(_STATISTICS) & set(keys):
                raise ValueError(
                    f"{path}: holds {', '.join(keys or names) or 'nothing'}, but neither images "
                    f"({_IMAGES}) nor statistics ({', '.join(_STATISTICS)}); write images by "
                    "np.savez(path, images), which names them arr_0"
                )
            if _IMAGES not in keys:
                return cls(path, keys, (), np.zeros(0, np.int64), None)
            header = _header(archive, path, _IMAGES)
            if faults := _image_faults(header):
                raise ValueError(f"{path}: {_IMAGES} {'; and '.join(faults)}")
            labels = _labels(archive, path, header.shape[0], present=_LABELS in keys)
        return cls(path, keys, header.shape[1:], labels, header.start)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def about(self) -> dict[str, Any]:
        """Nothing: an npz file does not say where its images come from."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the file; pixels that are mapped are held to their checksum on the way.

        Raises:
            ValueError: If the pixels are damaged.
        """
        digest, checksum, position = hashlib.sha256(), 0, 0
        first, stop, expected = self._mapped_member()
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                part = memoryview(chunk)[max(first - position, 0) : max(stop - position, 0)]
                checksum = zlib.crc32(part, checksum)
                position += len(chunk)
        if checksum != expected:
            raise _damaged(self.path, f"{_IMAGES} has another checksum than when it was written")
        return digest.hexdigest()

    def require_images(self) -> None:
        """Raise ValueError if the file has statistics only."""
        if not self.shape:
            raise ValueError(
                f"{self.path}: holds statistics ({', '.join(self.keys)}) but no images "
                f"({_IMAGES}); use it as a reference, or name a file that has images"
            )

    def read(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """Return the images at `indices`, copied.

        Compressed images are decompressed from the first one on and going back means starting
        over, so that batches in ascending order cost one pass in all.

        Args:
            indices: Numbers of images in [0, N), in any order, repeats allowed.

        Returns:
            uint8 pixels, (len(indices), H, W, 3).

        Raises:
            ValueError: If the file has no images, or compressed pixels are damaged.
        """
        self.require_images()
        wanted = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices)
        if not len(wanted):
            return np.empty((0, *self.shape), np.uint8)
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"{self.path}: images are 0 to {len(self) - 1}, not {wanted}")
        if self.start is not None:
            return np.asarray(self._mapped[wanted])
        ascending, positions = np.unique(wanted, return_inverse=True)
        return self._stream.read(ascending)[positions]

    def statistics(self) -> dict[str, np.ndarray] | None:
        """Return the moments that the file holds, in float64; None if it holds none.

        Returns:
            "mu" (2048,) and "sigma" (2048, 2048) of the pooled features, "mu_s" (2023,) and
            "sigma_s" (2023, 2023) of the spatial ones, or either pair.

        Raises:
            ValueError: If half of a pair is missing, or an array is of another shape or not finite.
        """
        wanted = [key for key in _STATISTICS if key in self.keys]
        for pair in _PAIRS:
            missing = [key for key in pair if key not in wanted]
            if len(missing) == 1:
                raise ValueError(
                    f"{self.path}: {missing[0]} is missing; {' and '.join(pair)} belong together: "
                    "write both, or neither"
                )
        with _archive(self.path) as archive:
            found = {key: _statistic(archive, self.path, key) for key in wanted}
        return found or None

    @cached_property
    def _mapped(self) -> np.ndarray:
        shape = (len(self), *self.shape)
        return np.asarray(np.memmap(self.path, np.uint8, "r", offset=self.start or 0, shape=shape))

    @cached_property
    def _stream(self) -> "_Stream":
        return _Stream(self.path, len(self), self.shape)

    def _mapped_member(self) -> tuple[int, int, int]:
        """Return first and last offset and checksum of the member that is mapped, else zeros."""
        if self.start is None:
            return 0, 0, 0
        with _archive(self.path) as archive:
            member = archive.getinfo(f"{_IMAGES}.npy")
        stop = self.start + len(self) * math.prod(self.shape)
        return stop - member.file_size, stop, member.CRC

    def __getstate__(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}


class _Stream:
    """Compressed images, decompressed in their order; one process, any number of threads."""

    def __init__(self, path: Path, num_images: int, shape: tuple[int, ...]) -> None:
        self._path, self._num_images, self._shape = path, num_images, shape
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._next = 0  # number of the image at the file's position

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at ascending indices."""
        images = np.empty((len(indices), *self._shape), np.uint8)
        with self._lock:
            try:
                for position, index in enumerate(indices):
                    file = self._at(int(index))
                    images[position] = np.frombuffer(self._pixels(file), np.uint8).reshape(
                        self._shape
                    )
            except ValueError:
                self._close()
                raise
        return images

    def _at(self, index: int) -> IO[bytes]:
        """Return the file, positioned at an image."""
        if self._file is None or index < self._next:
            self._close()
            with _archive(self._path) as archive:
                self._file = archive.open(f"{_IMAGES}.npy")  # outlives the archive's handle
                _read_header(self._file)
        while self._next < index:
            self._pixels(self._file)
        return self._file

    def _pixels(self, file: IO[bytes]) -> bytes:
        """Return the next image's bytes; the member's checksum is compared after the last."""
        num_bytes = math.prod(self._shape)
        with _damage_named(self._path):
            pixels = file.read(num_bytes)
        if len(pixels) != num_bytes:
            raise _damaged(self._path, f"{_IMAGES} ends in image {self._next}")
        self._next += 1
        return pixels

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._next = None, 0


def _damaged(path: Path, what: str | BaseException) -> ValueError:
    return ValueError(f"{path}: is not a whole npz file: {what}; copy or write it again")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Make errors of the archive name the file and the remedy."""
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError,
        UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        yield archive


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the head of an npy file: shape, Fortran order, dtype. The shape is a literal."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"npy version {version} is for arrays of records")


def _header(archive: zipfile.ZipFile, path: Path, key: str) -> _Header:
    """Return what the file says of an array, after checking that the array is whole."""
    member = archive.getinfo(f"{key}.npy")
    if member.compress_type not in _KINDS or member.flag_bits & 1:
        raise ValueError(
            f"{path}: {key} is encrypted or packed in a way that NumPy does not write; write the "
            "file by np.savez"
        )
    with archive.open(member) as file:
        try:
            shape, fortran_order, dtype = _read_header(file)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise
        except Exception as error:  # whatever the parser of a broken header runs into
            raise _damaged(path, f"{key} is no npy array ({error})") from error
        num_bytes = file.tell()
    if dtype.hasobject:
        raise ValueError(
            f"{path}: {key} is an array of Python objects (dtype object), which is not opened "
            "because it may run code; write a plain array of numbers"
        )
    num_bytes += math.prod(shape) * dtype.itemsize
    if num_bytes != member.file_size or min(shape, default=0) < 0:
        raise _damaged(
            path,
            f"{key} should take {num_bytes:,} bytes as {dtype} {shape}, but {member.file_size:,} "
            "are there",
        )
    if member.compress_type != zipfile.ZIP_STORED:
        return _Header(shape, dtype, fortran_order, None)
    start = _member_start(path, member) + member.file_size - math.prod(shape) * dtype.itemsize
    return _Header(shape, dtype, fortran_order, start)


def _member_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Return the offset of a stored member's first byte, behind its local header."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start: int = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + member.file_size > path.stat().st_size:
        raise _damaged(path, f"{member.filename} goes on behind its end")
    return start


def _image_faults(header: _Header) -> list[str]:
    """Say what keeps an array from being RGB images; empty if nothing does."""
    shape, dtype, faults = header.shape, header.dtype, []
    if dtype.kind == "f":
        faults.append(
            f"is {dtype}; convert to uint8 and say by which rule: 127.5 * x + 128 clamped, or "
            "(x + 1) * 127.5"
        )
    elif dtype != np.uint8:
        faults.append(f"is {dtype}; convert to uint8, values 0 to 255")
    if len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]) and shape[3] != 3):
        faults.append(f"has the shape {shape} of greyscale images; make them RGB, (N, H, W, 3)")
    elif len(shape) == 4 and shape[1] == 3 != shape[3]:
        faults.append(
            f"has the layout NCHW, shape {shape}; transpose to NHWC by images.transpose(0, 2, 3, 1)"
        )
    elif len(shape) == 4 and shape[3] == 4:
        faults.append(f"has an alpha channel, shape {shape}; make the images RGB, (N, H, W, 3)")
    elif len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        faults.append(f"has shape {shape}; images have the shape (N, H, W, 3)")
    if header.fortran_order and not faults:
        faults.append("is in Fortran order; write np.ascontiguousarray(images)")
    return faults


def _labels(archive: zipfile.ZipFile, path: Path, num_images: int, *, present: bool) -> np.ndarray:
    """Return the labels of the images, int64; -1 each if the file has none."""
    if not present:
        return np.full(num_images, -1, np.int64)
    header = _header(archive, path, _LABELS)
    if header.dtype.kind not in "iu" or header.shape != (num_images,):
        raise ValueError(
            f"{path}: {_LABELS} is {header.dtype} {header.shape}, but {num_images} images need "
            f"integer labels of shape ({num_images},); write one class index an image, or leave "
            f"{_LABELS} out"
        )
    return _read(archive, path, _LABELS).astype(np.int64)


def _statistic(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    header = _header(archive, path, key)
    if header.dtype.kind != "f" or header.shape != _STATISTICS[key]:
        raise ValueError(
            f"{path}: {key} is {header.dtype} {header.shape}, but Inception's features need floats "
            f"of shape {_STATISTICS[key]}; take the statistics of the same features as ADM's"
        )
    values = _read(archive, path, key).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{path}: {key} has values that are NaN or infinite; make the statistics again"
        )
    if values.ndim == 2 and not np.allclose(values, values.T, rtol=1e-6, atol=1e-9 * values.max()):
        raise ValueError(f"{path}: {key} is no covariance, it is not symmetric")
    return values


def _read(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    """Return an array whose header was checked; its checksum is compared."""
    with archive.open(f"{key}.npy") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise _damaged(path, f"{key}: {error}") from error
