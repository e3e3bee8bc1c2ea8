"""Catalog entries of shard sets and of the scratch directories they are made in."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
from kedro.io import DatasetError
from kedro_datasets._typing import ImagePreview, TablePreview

from selfdistill.data.shards import Shards
from selfdistill.files import publish_directory
from selfdistill.io.directory import DirectoryDataset

_GRID_HEIGHT, _GRID_WIDTH, _CELL_PIXELS = 4, 8, 64  # of the preview; in images, in pixels
_TABLE_LINES = 10


class ShardsDataset(DirectoryDataset[Shards, Shards]):
    """A shard set, loaded as a handle; saving moves the directory into place.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    last_file = "manifest.json"

    def load(self) -> Shards:
        """Open the set, after checking that its shards are whole."""
        return Shards.open(self._path)

    def save(self, data: Shards) -> None:
        """Move a finished set here."""
        publish_directory(data.path, self._path)

    @property
    def preview(self) -> Callable[[], ImagePreview] | Callable[[], TablePreview]:
        """How Kedro-Viz shows the set: images as pictures, anything else as a table.

        Kedro-Viz reads the kind of a preview from the annotation of what it calls, so there is one
        function for each kind; and none, which Kedro-Viz accepts, before there is a set.
        """
        if not self._exists():
            raise AttributeError(f"{self._path}: nothing to preview yet")
        header = json.loads((self._path / self.last_file).read_text(encoding="utf-8"))
        is_image = header["dtype"] == "uint8" and header["shape"][2:] == [3]
        return self._preview_images if is_image else self._preview_manifest

    def _preview_images(self) -> ImagePreview:
        """Return a grid of images spread evenly over the set, as PNG."""
        from PIL import Image

        shards = self.load()
        num_images = min(_GRID_HEIGHT * _GRID_WIDTH, len(shards))
        picks = np.linspace(0, len(shards) - 1, num_images).astype(int)
        grid = Image.new("RGB", (_GRID_WIDTH * _CELL_PIXELS, _GRID_HEIGHT * _CELL_PIXELS))
        for cell, pixels in enumerate(shards.read(picks)):
            top, left = divmod(cell, _GRID_WIDTH)
            image = Image.fromarray(pixels).resize((_CELL_PIXELS, _CELL_PIXELS))
            grid.paste(image, (left * _CELL_PIXELS, top * _CELL_PIXELS))
        file = io.BytesIO()
        grid.save(file, "PNG")
        return ImagePreview(base64.b64encode(file.getvalue()).decode())

    def _preview_manifest(self) -> TablePreview:
        """Return the first lines of the manifest."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self._path / "manifest.parquet") as file:
            head = next(file.iter_batches(_TABLE_LINES))
        return TablePreview(head.to_pandas().to_dict(orient="split"))


class PlaceDataset(DirectoryDataset[NoReturn, Path]):
    """Where a shard set is published, for whoever looks at its files, damaged ones too.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    @property
    def files(self) -> list[Path]:
        """Nothing: it is no result."""
        return []

    def load(self) -> Path:
        """Return the path, of what is there or not."""
        return self._path

    def save(self, data: NoReturn) -> None:
        """Refuse: the set has a catalog entry of its own."""
        raise DatasetError(f"{self._path} is written through the entry of the set itself")


class ScratchDataset(DirectoryDataset[NoReturn, Path]):
    """A directory for an unfinished job, outside of what a pipeline declares as its output.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    @property
    def files(self) -> list[Path]:
        """Nothing: it is no result."""
        return []

    def load(self) -> Path:
        """Make the directory when absent and return its path."""
        self._path.mkdir(parents=True, exist_ok=True)
        return self._path

    def save(self, data: NoReturn) -> None:
        """Refuse: nodes write into the directory themselves."""
        raise DatasetError(f"{self._path} is a scratch directory; no node returns it")
