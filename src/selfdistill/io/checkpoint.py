"""Catalog entries of the train and sample stages."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import JSONPreview

from selfdistill.data.shards import Shards
from selfdistill.files import atomic_path, publish_directory
from selfdistill.methods.checkpoint import Checkpoint

_ROWS = 256


class CheckpointDataset(AbstractDataset[Checkpoint, Checkpoint]):
    """A finished checkpoint, loaded as a handle; saving moves the directory into place.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, path: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(path)
        self.metadata = metadata

    def load(self) -> Checkpoint:
        """Open the checkpoint."""
        return Checkpoint.open(self._path)

    def save(self, data: Checkpoint) -> None:
        """Move a finished checkpoint here."""
        publish_directory(data.path, self._path)

    def preview(self) -> JSONPreview:
        """Show what the checkpoint says of itself."""
        return JSONPreview(json.dumps(self.load().about))

    def _exists(self) -> bool:
        return (self._path / "checkpoint.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}


class AdmNpzDataset(AbstractDataset[Shards, None]):
    """Samples as ADM's evaluator reads them: `arr_0` uint8 (N, H, W, 3), `arr_1` labels (N,).

    Written row by row: 50,000 images of 256 x 256 are 9.8 GB and never in memory at once.

    Args:
        path: The `.npz` file.
        metadata: For Kedro-Viz.
    """

    def __init__(self, *, path: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(path)
        self.metadata = metadata

    def load(self) -> None:
        """Refuse: the file is for other programs."""
        raise DatasetError(f"{self._path} is an export; read the samples instead")

    def save(self, data: Shards) -> None:
        """Write the samples, atomically, without compression."""
        with (
            atomic_path(self._path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            _write_array(archive, "arr_0", (len(data), *data.shape), np.dtype("uint8"), data.read)
            labels = data.labels
            _write_array(archive, "arr_1", labels.shape, labels.dtype, labels.__getitem__)

    def _exists(self) -> bool:
        return self._path.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, read: Any
) -> None:
    """Write one .npy member in pieces, `read(rows)` at a time."""
    # A fixed date: the same samples give the same bytes.
    member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    with archive.open(member, "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_2_0(file, {**header, "shape": shape})
        for start in range(0, shape[0], _ROWS):
            rows = np.arange(start, min(start + _ROWS, shape[0]))
            file.write(np.ascontiguousarray(read(rows)).tobytes())
