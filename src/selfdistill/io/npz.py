"""Catalog entry of samples for other people's evaluators."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kedro.io import AbstractDataset, DatasetError

from selfdistill.data.shards import Shards
from selfdistill.files import atomic_path

_RECORDS_PER_WRITE = 256


class AdmNpzDataset(AbstractDataset[Shards, None]):
    """Samples as ADM's evaluator reads them: `arr_0` uint8 (N, H, W, 3), `arr_1` labels (N,).

    Of samples in several sets (`repeats`) the first. Written piece by piece: 50,000 images of 256 x
    256 are 9.8 GB and never in memory at once.

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
        num = data.about.get("sample", {}).get("num_images", len(data))
        with (
            atomic_path(self._path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            _write_array(archive, "arr_0", (num, *data.shape), np.dtype("uint8"), data.read)
            labels = data.labels[:num]
            _write_array(archive, "arr_1", labels.shape, labels.dtype, labels.__getitem__)

    @property
    def files(self) -> list[Path]:
        """What is tracked of it: the file."""
        return [self._path]

    def _exists(self) -> bool:
        return self._path.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    read: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Write one .npy member in pieces, `read(indices)` at a time."""
    # A fixed date: the same samples give the same bytes.
    member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    with archive.open(member, "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_2_0(file, {**header, "shape": shape})
        for start in range(0, shape[0], _RECORDS_PER_WRITE):
            indices = np.arange(start, min(start + _RECORDS_PER_WRITE, shape[0]))
            file.write(np.ascontiguousarray(read(indices)).tobytes())
