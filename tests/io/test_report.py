import base64
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kedro.io import AbstractDataset, DataCatalog, DatasetError
from kedro_viz.models.flowchart.node_metadata import DataNodeMetadata
from kedro_viz.models.flowchart.nodes import GraphNode
from PIL import Image

from selfdistill.io.report import (
    ArraysDataset,
    CurvesDataset,
    MetricsDataset,
    PictureDataset,
    TableDataset,
)

RECORDS = [
    {"nimg": 0, "loss": 2.0, "network/denoise": 2.0, "lr": 1.0e-4, "grad_norm": 1.0},
    {"nimg": 64, "loss": 1.0, "network/denoise": 1.0, "lr": 1.0e-4, "grad_norm": 0.5},
]
KINDS = [MetricsDataset, ArraysDataset, CurvesDataset, PictureDataset, TableDataset]


class Rendered:
    def markdown(self, title: str) -> str:
        return f"# {title}\n"

    def csv(self) -> str:
        return "row,fid\ndsd_b,4.25\ndsd_s,\n"

    def html(self, title: str, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
        return f"{title} {dict(pictures)} {dict(links)}"


def metadata_in_viz(dataset: AbstractDataset) -> DataNodeMetadata:
    """What Kedro-Viz shows of a catalog entry."""
    DataNodeMetadata.set_is_all_previews_enabled(True)
    node = GraphNode.create_data_node(
        dataset_id="1",
        dataset_name="entry",
        layer=None,
        tags=set(),
        dataset=dataset,
        modular_pipelines=set(),
        is_free_input=True,
    )
    return DataNodeMetadata(data_node=node)


def leftovers(directory: Path) -> list[Path]:
    return list(directory.rglob(".*"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_file_is_none_if_optional_and_an_error_that_names_it_if_not(kind, tmp_path):
    path = tmp_path / "entry.csv"
    assert kind(filepath=path, optional=True).load() is None
    assert not kind(filepath=path, optional=True).exists()
    with pytest.raises(DatasetError, match=r"entry\.csv"):
        kind(filepath=path).load()


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_can_be_made_from_a_catalog_and_keeps_its_metadata(kind, tmp_path):
    layer = {"kedro-viz": {"layer": "reporting"}}
    config = {"type": f"selfdistill.io.report.{kind.__name__}", "optional": True}
    config |= {"filepath": str(tmp_path / "{row}.json"), "metadata": layer}
    dataset = DataCatalog.from_config({"{row}.entry": config}).get("dsd_b.entry")
    assert isinstance(dataset, kind)
    assert dataset.metadata == layer
    assert str(tmp_path / "dsd_b.json") in str(dataset)


def test_metrics_come_back_as_saved(tmp_path):
    dataset = MetricsDataset(filepath=tmp_path / "deep" / "metrics.json")
    value = {"metrics": {"fd_tiny": 1.5}, "protocol": {"num_samples": 10, "about": None}}
    dataset.save(value)
    assert dataset.exists()
    assert dataset.load() == value
    shown = metadata_in_viz(dataset)
    assert json.loads(shown.preview) == value
    assert shown.preview_type == "JSONPreview"
    assert leftovers(tmp_path) == []


def test_arrays_come_back_as_saved_and_equal_arrays_give_equal_bytes(tmp_path):
    arrays = {"mu": np.arange(3.0), "sigma": np.eye(3), "num": np.array(7), "by": np.array("tiny")}
    first, second = (ArraysDataset(filepath=tmp_path / name) for name in ("a.npz", "b.npz"))
    first.save(arrays)
    second.save(arrays)
    loaded = first.load()
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    preview = json.loads(metadata_in_viz(first).preview)
    assert preview == {"mu": "float64 [3]", "sigma": "float64 [3, 3]", "num": 7, "by": "tiny"}
    assert leftovers(tmp_path) == []


def test_arrays_never_load_a_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", harmful=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DatasetError, match="allow_pickle=False"):
        ArraysDataset(filepath=tmp_path / "a.npz").load()


def test_curves_are_copied_and_their_losses_shown(tmp_path):
    source = tmp_path / "scratch" / "metrics.jsonl"
    source.parent.mkdir()
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    dataset = CurvesDataset(filepath=tmp_path / "curves.jsonl")
    dataset.save(source)
    assert source.exists()
    assert dataset.load() == RECORDS
    shown = metadata_in_viz(dataset)
    lines = {line["name"]: (line["x"], line["y"]) for line in shown.preview["data"]}
    csv = pd.read_csv(tmp_path / "curves.csv")
    assert csv["loss"].tolist() == [record["loss"] for record in RECORDS]
    assert lines == {"loss": ([0, 64], [2.0, 1.0]), "denoise": ([0, 64], [2.0, 1.0])}
    assert shown.preview_type == "PlotlyPreview"
    assert leftovers(tmp_path) == []


def test_a_picture_comes_back_pixel_for_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    dataset = PictureDataset(filepath=tmp_path / "grid.png")
    dataset.save(Image.fromarray(pixels))
    np.testing.assert_array_equal(np.asarray(dataset.load()), pixels)
    shown = metadata_in_viz(dataset)
    assert base64.b64decode(shown.preview) == (tmp_path / "grid.png").read_bytes()
    assert shown.preview_type == "ImagePreview"
    assert leftovers(tmp_path) == []


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path):
    dataset = PictureDataset(filepath=tmp_path / "grid.png")
    dataset.save(Image.new("RGB", (2, 2)))
    before = (tmp_path / "grid.png").read_bytes()
    with pytest.raises(DatasetError):
        dataset.save(Image.new("HSV", (2, 2)))
    assert (tmp_path / "grid.png").read_bytes() == before
    assert leftovers(tmp_path) == []


def test_a_table_is_written_three_times_side_by_side(tmp_path):
    pictures = {"Samples": "sheet.png"}
    dataset = TableDataset(
        filepath=tmp_path / "dsd.md", title="DSD", pictures=pictures, links={"lock": "x.lock"}
    )
    assert not dataset.exists()
    dataset.save(Rendered())
    assert dataset.exists()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["dsd.csv", "dsd.html", "dsd.md"]
    assert (tmp_path / "dsd.md").read_text() == "# DSD\n"
    assert (tmp_path / "dsd.html").read_text() == "DSD {'Samples': 'sheet.png'} {'lock': 'x.lock'}"
    expected = pd.DataFrame({"row": ["dsd_b", "dsd_s"], "fid": [4.25, np.nan]})
    pd.testing.assert_frame_equal(dataset.load(), expected)
    shown = metadata_in_viz(dataset)
    assert shown.preview["data"] == [["dsd_b", "4.25"], ["dsd_s", ""]]
    assert shown.preview_type == "TablePreview"
