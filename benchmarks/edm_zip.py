"""The rival: images in EDM's format, an uncompressed zip of uncompressed PNGs, by Pillow alone."""

import io
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from selfdistill.data.raw import RawImage


def plain_decode(data: bytes) -> Image.Image:
    """Decode as everybody does."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def plain_crop(image: Image.Image, size: int) -> np.ndarray:
    """Crop as ADM does: halve by boxes, scale the whole by bicubic interpolation, cut."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(scaled)[top : top + size, left : left + size]


def png(pixels: np.ndarray) -> memoryview:
    """Return pixels (H, W, 3) as a PNG file without compression."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=0, optimize=False)
    return file.getbuffer()


def write_zip(file: Path, images: Iterable[RawImage], size: int) -> None:
    """Crop images into a zip that is on disk when this returns, as our shards are."""
    labels = []
    with file.open("wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for number, image in enumerate(images):
                name = f"{number // 1000:05d}/img{number:08d}.png"
                archive.writestr(name, png(plain_crop(plain_decode(image.data), size)))
                labels.append([name, image.label])
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
        stream.flush()
        os.fsync(stream.fileno())


class ZipImages:
    """Such a zip, open for reading."""

    def __init__(self, file: Path) -> None:
        self._archive = zipfile.ZipFile(file)
        names = (info.filename for info in self._archive.infolist())
        self._names = sorted(name for name in names if name.endswith(".png"))

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 (n, H, W, 3)."""
        return np.stack([self._decode(self._names[index]) for index in indices])

    def _decode(self, name: str) -> np.ndarray:
        with self._archive.open(name) as stream, Image.open(stream) as image:
            return np.asarray(image)
