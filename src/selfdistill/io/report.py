"""Catalog entries of the numbers and pictures: arrays, metrics, curves, pictures, tables.

All are written to a temporary name and renamed, and show themselves in Kedro-Viz. Those that are
`optional` load as None while nobody has made them, so that a report can leave their cells empty.
"""

import base64
import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kedro.io import AbstractDataset
from kedro_datasets._typing import ImagePreview, JSONPreview, PlotlyPreview, TablePreview

from selfdistill.files import atomic_path, read_arrays, write_arrays, write_json
from selfdistill.metrics.curves import loss_curves

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL import Image


class _FileDataset(AbstractDataset[Any, Any]):
    """One file under a fixed name.

    Args:
        filepath: The file; its folder is made when needed.
        optional: Load None when the file is absent, instead of raising an error.
        metadata: Passed through to plugins, e.g. the layer for Kedro-Viz.
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        optional: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._filepath = Path(filepath)
        self._optional = optional
        self.metadata = metadata

    @property
    def files(self) -> list[Path]:
        """What is tracked of it."""
        return [self._filepath]

    def _exists(self) -> bool:
        return all(file.is_file() for file in self.files)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "optional": self._optional}

    def _not_made_yet(self) -> bool:
        return self._optional and not self._filepath.is_file()


class MetricsDataset(_FileDataset):
    """JSON values <-> a JSON file."""

    def load(self) -> Any:
        """Return the JSON value; None if the entry is optional and absent."""
        if self._not_made_yet():
            return None
        return json.loads(self._filepath.read_text(encoding="utf-8"))

    def save(self, data: Any) -> None:
        """Write `data`, keys in the order given."""
        write_json(self._filepath, data)

    def preview(self) -> JSONPreview:
        """Return the file's text."""
        return JSONPreview(self._filepath.read_text(encoding="utf-8"))


class ArraysDataset(_FileDataset):
    """NumPy arrays by name <-> an uncompressed npz file; equal arrays give equal bytes."""

    def load(self) -> "dict[str, np.ndarray] | None":
        """Return all arrays, in memory; None if the entry is optional and absent."""
        return None if self._not_made_yet() else read_arrays(self._filepath)

    def save(self, data: "Mapping[str, np.ndarray]") -> None:
        """Write arrays of numbers or strings."""
        write_arrays(self._filepath, data)

    def preview(self) -> JSONPreview:
        """Return scalars as they are and the shapes of the rest."""
        arrays = self.load() or {}
        shown = {
            name: f"{array.dtype} {list(array.shape)}" if array.ndim else array.item()
            for name, array in arrays.items()
        }
        return JSONPreview(json.dumps(shown))


class CurvesDataset(_FileDataset):
    """Training curves: a JSON-lines file with one record per logging interval.

    A record is {"nimg": int, "loss": float, "<turn>/<term>": float..., "lr": float,
    "grad_norm": float...}. Beside it stands the same as CSV, which `dvc plots` can draw.
    """

    @property
    def files(self) -> list[Path]:
        """The two files."""
        return [self._filepath, self._filepath.with_suffix(".csv")]

    def load(self) -> list[dict[str, Any]] | None:
        """Return the records in the order of the file; None if optional and absent."""
        if self._not_made_yet():
            return None
        lines = self._filepath.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def save(self, data: Path) -> None:
        """Copy the JSON-lines file at `data` here, and write its CSV; the original stays."""
        lines = data.read_text(encoding="utf-8").splitlines()
        with atomic_path(self._filepath.with_suffix(".csv")) as temporary:
            _write_csv(temporary, [json.loads(line) for line in lines if line.strip()])
        with atomic_path(self._filepath) as temporary:
            shutil.copyfile(data, temporary)

    def preview(self) -> PlotlyPreview:
        """Return a Plotly figure of the losses over the images seen."""
        records = self.load() or []
        lines = [
            {"type": "scatter", "mode": "lines", "name": name, "x": nimg, "y": values}
            for name, (nimg, values) in loss_curves(records).items()
        ]
        axes = {"xaxis": {"title": {"text": "images seen"}}, "yaxis": {"title": {"text": "loss"}}}
        return PlotlyPreview({"data": lines, "layout": axes})


def _write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records with a column for each name that any of them has; diagnostics follow."""
    flat = [record | record.get("diagnostics", {}) for record in records]
    names = dict.fromkeys(name for record in flat for name in record if name != "diagnostics")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(names), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


class PictureDataset(_FileDataset):
    """PIL image <-> PNG."""

    def load(self) -> "Image.Image | None":
        """Return the picture, read whole; None if the entry is optional and absent."""
        from PIL import Image

        if self._not_made_yet():
            return None
        with Image.open(self._filepath) as picture:
            return picture.copy()

    def save(self, data: "Image.Image") -> None:
        """Write `data` as PNG, whatever the file's suffix."""
        with atomic_path(self._filepath) as temporary:
            data.save(temporary, format="PNG", optimize=True)

    def preview(self) -> ImagePreview:
        """Return the file in base64."""
        return ImagePreview(base64.b64encode(self._filepath.read_bytes()).decode("ascii"))


class Renderable(Protocol):
    """A table that can write itself down in three ways."""

    def markdown(self, title: str) -> str:
        """Return it as a whole Markdown page."""
        ...

    def csv(self) -> str:
        """Return it as CSV with a line of column names."""
        ...

    def html(self, title: str, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
        """Return it as a whole page; both map captions to places, relative to it."""
        ...


class TableDataset(_FileDataset):
    """A table <-> three files side by side that differ in their suffix: .md, .csv and .html.

    Args:
        filepath: Any of the three; the suffix is replaced.
        title: What the table is of, a heading or a name that the table knows the heading of; the
            file's name without suffix when absent.
        pictures: Captions and links of the pictures that the page shows, relative to it.
        links: Captions and links of what stands behind a number; the table fills in the names of
            its lines.
        optional: Load None when the CSV is absent, instead of raising an error.
        metadata: Passed through to plugins.
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        title: str | None = None,
        pictures: dict[str, str] | None = None,
        links: dict[str, str] | None = None,
        optional: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(filepath=filepath, optional=optional, metadata=metadata)
        self._title = title or self._filepath.stem
        self._pictures, self._links = pictures or {}, links or {}

    def load(self) -> "pd.DataFrame | None":
        """Return the CSV, empty cells as NaN; None if the entry is optional and absent."""
        import pandas as pd

        path = self._filepath.with_suffix(".csv")
        return None if self._optional and not path.is_file() else pd.read_csv(path)

    def save(self, data: Renderable) -> None:
        """Write the three files."""
        texts = {
            ".md": data.markdown(self._title),
            ".csv": data.csv(),
            ".html": data.html(self._title, self._pictures, self._links),
        }
        for suffix, text in texts.items():
            with atomic_path(self._filepath.with_suffix(suffix)) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def preview(self, nrows: int = 50) -> TablePreview:
        """Return the first rows, empty cells as empty strings."""
        import pandas as pd

        head = pd.read_csv(self._filepath.with_suffix(".csv"), dtype=str, keep_default_na=False)
        return TablePreview(head.head(nrows).to_dict(orient="split"))

    @property
    def files(self) -> list[Path]:
        """The three files."""
        return [self._filepath.with_suffix(suffix) for suffix in (".md", ".csv", ".html")]

    def _describe(self) -> dict[str, Any]:
        return {
            **super()._describe(),
            "title": self._title,
            "pictures": self._pictures,
            "links": self._links,
        }
