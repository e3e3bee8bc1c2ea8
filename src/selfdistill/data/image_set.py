"""What an evaluator measures: a set of images of one size, however it is kept."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from selfdistill.data.image_folder import ImageFolder
from selfdistill.data.npz_images import NpzImages
from selfdistill.data.shards import Shards

_KINDS = (
    "a folder of images, the directory of a shard set (it has a manifest.json), or an .npz file "
    "with arr_0"
)


class ImageSet(Protocol):
    """Images in a fixed order; a handle that holds no pixels and can be opened again by path."""

    @property
    def path(self) -> Path:
        """The file or directory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, (H, W, 3)."""

    @property
    def labels(self) -> np.ndarray:
        """Class indices, (N,), int64; -1 where unknown."""

    @property
    def fingerprint(self) -> str:
        """Hex digits that change when an image does."""

    @property
    def about(self) -> dict[str, Any]:
        """Provenance as JSON values, e.g. "quantisation"; may be empty."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 (len(indices), H, W, 3)."""


def open_image_set(path: Path) -> ImageSet:
    """Open whatever holds images, after checking all that can be checked without pixels.

    Args:
        path: A folder of images, a shard set, or an ADM npz file.

    Raises:
        FileNotFoundError: If there is nothing at `path`, or a shard set that is not finished.
        ValueError: If it is nothing of the three or damaged, the images are not 8-bit RGB of one
            size, or there are fewer than two.
    """
    images = _open(path)
    if len(images) < 2:
        raise ValueError(
            f"{path}: {len(images)} images, but a covariance needs two images or more; name a "
            "larger set"
        )
    return images


def _open(path: Path) -> ImageSet:
    if not path.exists():
        raise FileNotFoundError(f"{path}: nothing here; name {_KINDS}")
    if path.is_dir():
        is_shard_set = (path / "manifest.json").exists() or any(path.glob("shard-*.arrow"))
        return _open_shards(path) if is_shard_set else ImageFolder.open(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: not a set of images; name {_KINDS}")
    images = NpzImages.open(path)
    images.require_images()
    return images


def _open_shards(path: Path) -> Shards:
    try:
        shards = Shards.open(path)
    except ValueError as error:
        if any(path.glob("shard-*.arrow")):
            raise
        raise ValueError(
            f"{path}: its manifest.json is not that of a shard set; remove or rename it if this is "
            "a folder of images, else run the stage that makes the set again"
        ) from error
    dtype, shape = shards.dtype, shards.shape
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise ValueError(
            f"{path}: the shards hold {dtype} {shape}, but images are uint8 of shape (H, W, 3); "
            "name the shard set of the images themselves, not of features or latents"
        )
    return shards
