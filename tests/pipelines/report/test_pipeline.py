import json
import logging

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from PIL import Image

from selfdistill.pipelines import report

ENTRIES = [("dsd_b", "plain"), ("dsd_b", "guided"), ("dsd_s", "plain")]
ROWS = ["dsd_b", "dsd_s"]
IO = "selfdistill.io.report"

pytestmark = pytest.mark.filterwarnings("ignore:One or more dataset names contain")


@pytest.fixture
def catalog(tmp_path) -> DataCatalog:
    def entry(kind: str, name: str, **options: object) -> dict[str, object]:
        return {"type": f"{IO}.{kind}", "filepath": f"{tmp_path}/{name}", **options}

    catalog = DataCatalog.from_config(
        {
            "{row}.curves": entry("CurvesDataset", "{row}/curves.jsonl", optional=True),
            "{row}.{sampling}.grid": entry(
                "PictureDataset", "{row}/{sampling}/grid.png", optional=True
            ),
            "{row}.{sampling}.metrics": entry(
                "MetricsDataset", "{row}/{sampling}/metrics.json", optional=True
            ),
            "table_{paper}": entry("TableDataset", "{paper}/table.md", title="{paper}"),
            "sheet_{paper}": entry("PictureDataset", "{paper}/sheet.png"),
            "curves_{paper}": entry("PictureDataset", "{paper}/curves.png"),
        }
    )
    for row in ("dsd_b", "dsd_s"):
        samplings = {"plain": {"fid": 4.25}, "guided": {"fid": 3.35}}
        paper = {"params": 1, "data": "imagenet_256", "num_samples": 50_000, "reference": None}
        paper["samplings"] = samplings
        catalog[f"params:{row}"] = MemoryDataset({"paper": paper, "data": "digits_32"})
    return catalog


def test_a_report_is_made_before_anything_was_run(catalog, tmp_path):
    SequentialRunner().run(report.create_pipeline("dsd", ENTRIES, ROWS), catalog)
    names = sorted(path.name for path in (tmp_path / "dsd").iterdir())
    assert names == ["curves.png", "sheet.png", "table.csv", "table.html", "table.md"]
    frame = catalog.load("table_dsd")
    assert frame["row"].tolist() == ["dsd_b", "dsd_b", "dsd_s"]
    assert frame["fid_paper"].tolist() == [4.25, 3.35, 4.25]
    assert frame["fid_ours"].isna().all()
    for name in ("table.md", "table.html"):
        text = (tmp_path / "dsd" / name).read_text(encoding="utf-8")
        assert "DSD: Diffusion as Self-Distillation (arXiv:2511.14716)" in text


def test_a_report_shows_what_was_run_and_logs_it(catalog, tmp_path, caplog):
    result = {
        "metrics": {"fd_tiny": 12.5},
        "baselines": {"fd_tiny": {"noise": 188.0}},
        "protocol": {
            "extractors": {},
            "samples": {},
            "num_samples": 20,
            "reference": {"published": None, "num_images": 9},
        },
    }
    catalog.save("dsd_b.guided.metrics", result)
    catalog.save("dsd_b.guided.grid", Image.new("RGB", (64, 64), "red"))
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"nimg": 1, "loss": 2.0}) + "\n")
    catalog.save("dsd_b.curves", log)
    with caplog.at_level(logging.INFO, logger="selfdistill"):
        SequentialRunner().run(report.create_pipeline("dsd", ENTRIES, ROWS), catalog)
    frame = catalog.load("table_dsd")
    assert frame["fd_tiny"].fillna(-1).tolist() == [-1, 12.5, -1]
    assert frame["fid_ours"].isna().all()
    assert "dsd_b  guided    fd_tiny  12.5  noise 188" in caplog.text
    sheet = catalog.load("sheet_dsd")
    assert (255, 0, 0) in [colour for _, colour in sheet.getcolors(sheet.width * sheet.height)]


def test_the_table_comes_last_so_that_a_user_sees_it():
    pipeline = report.create_pipeline("dsd", ENTRIES, ROWS)
    assert [node.name for node in pipeline.nodes][-1] == "tabulate_dsd"


def test_nodes_are_plain_functions_whose_source_tools_can_find():
    for node in report.create_pipeline("dsd", ENTRIES, ROWS).nodes:
        assert node.func.__module__ == "selfdistill.pipelines.report.nodes"


def test_rows_that_are_not_trained_have_no_curves():
    pipeline = report.create_pipeline("dsd", ENTRIES, ["dsd_s"])
    assert {name for name in pipeline.inputs() if name.endswith(".curves")} == {"dsd_s.curves"}
    assert "dsd_b.plain.metrics" in pipeline.inputs()
