"""Image files below a folder, as they are: nothing is scaled, cropped or converted.

Whatever would change pixels silently (another mode, 16 bits, mixed sizes) is refused, because it
would be another set of images. EXIF orientation and colour profiles are ignored, as in ADM.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from selfdistill.files import sha256_of

logger = logging.getLogger(__name__)

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # no others: some run programs (EPS)
_SCAN_THREADS = 16  # they hide the latency of network file systems, not computation
_DECODE_THREADS = min(8, os.cpu_count() or 1)

_Result = TypeVar("_Result")


class _Header(NamedTuple):
    """What an image file says of itself."""

    size: tuple[int, int]  # width, height
    mode: str
    is_lossy: bool


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The images below a folder, sorted by path: a handle that holds no pixel and no open file.

    Attributes:
        path: The folder.
        names: Paths of the images relative to it.
        shape: Shape of an image, (H, W, 3).
        num_lossy: How many were compressed with loss.
    """

    path: Path
    names: tuple[str, ...] = field(repr=False)
    shape: tuple[int, ...]
    num_lossy: int

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find the images and read their headers; no pixel is decoded.

        Hidden files, and files that no suffix makes out to be images, are ignored; links are
        followed.

        Raises:
            FileNotFoundError: If there is no folder at `path`.
            ValueError: If it holds no images, one of them cannot be opened or is not 8-bit RGB, or
                their sizes differ; the message names the file.
        """
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no folder here; check the path")
        names = tuple(sorted(file.relative_to(path).as_posix() for file in _image_files(path)))
        if not names:
            raise ValueError(
                f"{path}: holds no images; put some ({_listed(_SUFFIXES)}) anywhere below it, or "
                "name another folder"
            )
        headers = _in_threads(_SCAN_THREADS, _read_header, [path / name for name in names])
        _check_headers([path / name for name in names], headers)
        num_lossy = sum(header.is_lossy for header in headers)
        if num_lossy:
            logger.warning(
                "%s: %d of %d images are compressed with loss (JPEG or the like), which changes "
                "FID; compare them with images saved alike only, or save samples as PNG",
                path,
                num_lossy,
                len(names),
            )
        width, height = headers[0].size
        return cls(path, names, (height, width, 3), num_lossy)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices, (N,), int64: numbers of the sorted class folders.

        They are -1 each unless all images lie in folders of the first level, two or more.
        """
        folders = [name.rpartition("/")[0] for name in self.names]
        classes = sorted(set(folders))
        if len(classes) < 2 or any(not folder or "/" in folder for folder in classes):
            return np.full(len(self), -1, np.int64)
        return np.searchsorted(classes, folders).astype(np.int64)

    @property
    def about(self) -> dict[str, Any]:
        """The number of images compressed with loss, as "lossy"; empty if there are none."""
        return {"lossy": self.num_lossy} if self.num_lossy else {}

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of names and contents, hex."""
        contents = _in_threads(_SCAN_THREADS, sha256_of, [self.path / name for name in self.names])
        digest = hashlib.sha256()
        for name, content in zip(self.names, contents, strict=True):
            digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\n")
        return digest.hexdigest()

    def read(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """Return the images at `indices`.

        Args:
            indices: Numbers of images in [0, N), in any order, repeats allowed.

        Returns:
            uint8 pixels, (len(indices), H, W, 3).

        Raises:
            ValueError: If a file cannot be decoded, or is not what it was when it was opened; the
                message names it.
        """
        files = [self.path / self.names[index] for index in indices]
        images = _in_threads(_DECODE_THREADS, self._decode, files)
        return np.stack(images) if images else np.empty((0, *self.shape), np.uint8)

    def _decode(self, file: Path) -> np.ndarray:
        with _open(file) as image:
            try:
                image.load()
            except MemoryError:
                raise
            except Exception as error:  # whatever a decoder runs into
                raise ValueError(
                    f"{file}: cannot be decoded: {str(error) or type(error).__name__}; make or "
                    "copy it again, or remove it"
                ) from error
            pixels = np.asarray(image)
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError(
                f"{file}: is now {pixels.dtype} {pixels.shape}, not uint8 {self.shape}; leave the "
                "folder alone until the run ends, and start again"
            )
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}


def _in_threads(
    num_threads: int, function: Callable[[Path], _Result], files: list[Path]
) -> list[_Result]:
    """Return the function of each file, in order."""
    if len(files) < 2:
        return [function(file) for file in files]
    with ThreadPoolExecutor(min(num_threads, len(files))) as pool:
        try:
            return list(pool.map(function, files))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else an error waits for all files
            raise


def _image_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder that have an image's suffix; `above` are its parents."""
    place = folder.resolve()
    if place in above:
        raise ValueError(f"{folder}: is a link to a folder that it lies in; remove the link")
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        path = folder / entry.name
        if entry.is_dir():
            yield from _image_files(path, (*above, place))
        elif path.suffix.lower() in _SUFFIXES:
            yield path


def _open(file: Path) -> ImageFile.ImageFile:
    """Open an image file, decoding its header only."""
    try:
        return Image.open(file, formats=_FORMATS)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its own message repeats the path
        raise ValueError(
            f"{file}: is not a whole {_listed(_FORMATS)} file; make or copy it again, or remove it"
        ) from error
    except Exception as error:  # whatever the parser of a broken header runs into
        raise ValueError(
            f"{file}: cannot be opened: {str(error) or type(error).__name__}; make or copy it "
            "again, or remove it"
        ) from error


def _read_header(file: Path) -> _Header:
    with _open(file) as image:
        mode = image.mode
        # Pillow calls 16 bits a channel "RGB" too and would halve them; the raw mode tells.
        if any(";16" in str(tile[3]) for tile in image.tile):
            mode = f"16-bit {mode}".replace(";16", "")
        return _Header(image.size, mode, _is_lossy(file, image))


def _is_lossy(file: Path, image: Image.Image) -> bool:
    if image.format == "WEBP":
        return _webp_is_lossy(file)
    return image.format in ("JPEG", "MPO") or "jpeg" in str(image.info.get("compression"))


def _webp_is_lossy(file: Path) -> bool:
    """Say whether the first chunk of pixels in a WebP file is of the lossy kind."""
    with file.open("rb") as stream:
        stream.seek(12)  # behind "RIFF", size, "WEBP"
        while len(head := stream.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L"):
                return head[:4] == b"VP8 "
            size = int.from_bytes(head[4:], "little")
            stream.seek(size + size % 2, os.SEEK_CUR)
    return True


def _check_headers(files: list[Path], headers: list[_Header]) -> None:
    """Raise ValueError unless all images are RGB and of one size."""
    for file, header in zip(files, headers, strict=True):
        if header.mode != "RGB":
            raise ValueError(
                f"{file}: has mode {header.mode}; convert the images to 8-bit RGB first, in the "
                "way that your protocol says: converting them silently would hide it"
            )
    first = headers[0].size
    for file, header in zip(files, headers, strict=True):
        if header.size != first:
            raise ValueError(
                f"{file}: has {header.size[0]} x {header.size[1]} pixels, but {files[0]} has "
                f"{first[0]} x {first[1]}; crop and scale the images to one size first, or remove "
                "those that do not belong"
            )


def _listed(names: Iterable[str]) -> str:
    *others, last = sorted(name.removeprefix(".") for name in names)
    return f"{', '.join(others)} or {last}"
