"""Catalog entry of raw images."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from selfdistill.data.raw import Reader
from selfdistill.data.readers import Layout, open_reader
from selfdistill.files import naming_full_disk, publish_directory, temporary_name


class RawImagesDataset(AbstractDataset[Iterable[tuple[str, bytes]], Reader]):
    """Raw images, loaded as a reader.

    Args:
        path: As `selfdistill.data.readers.open_reader` takes it.
        layout: What is there: "class_folders", "imagenet_tar", "parquet", "coco", "unlabelled",
            "edm" or "cifar10".
        split: Of Parquet files, those whose names start with this; of COCO's, e.g. "val2014"; of
            CIFAR-10's own archives, "train" or "test".
        metadata: For Kedro-Viz.
    """

    def __init__(
        self,
        *,
        path: str,
        layout: Layout,
        split: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._path, self._layout, self._split = Path(path), layout, split
        self.metadata = metadata

    def load(self) -> Reader:
        """Scan the images and return their reader."""
        return open_reader(self._path, self._layout, self._split)

    def save(self, data: Iterable[tuple[str, bytes]]) -> None:
        """Write class folders, all files or none, in place of what stood there.

        Args:
            data: Path below the folder and content of each file; may be an iterator.

        Raises:
            DatasetError: If the layout is another one, or a path leads out of the folder.
        """
        if self._layout != "class_folders":
            raise DatasetError(f"{self._path}: layout {self._layout} cannot be written")
        staged = temporary_name(self._path)
        try:
            for name, content in data:
                file = (staged / name).resolve()
                if not file.is_relative_to(staged.resolve()):
                    raise DatasetError(f"{name}: leads out of {self._path}")
                with naming_full_disk(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
            publish_directory(staged, self._path)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @property
    def given(self) -> dict[str, Any]:
        """What determines which images they are, wherever they lie."""
        return {"layout": self._layout, "split": self._split}

    def _exists(self) -> bool:
        return self._path.exists()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path), "layout": self._layout, "split": self._split}
