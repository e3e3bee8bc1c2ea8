import json
import logging
from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg as Canvas
from matplotlib.figure import Figure

from selfdistill.pipelines.report import pictures
from selfdistill.pipelines.report.pipeline import create_sweep_pipeline
from selfdistill.pipelines.report.sweep import describe_choice, draw_sweep, pick_point


def point(guidance: float, start: float = 0.1, *, num_images: int = 10_000) -> dict[str, Any]:
    return {
        "solver": "euler",
        "num_steps": 249,
        "guidance": guidance,
        "guidance_interval": [start, 1.0],
        "num_images": num_images,
    }


def result(fid: float, inception_score: float) -> dict[str, Any]:
    return {"metrics": {"fid": fid, "inception_score": inception_score}, "protocol": {}}


POINTS = {"high": point(2.0), "low": point(1.0), "late": point(1.5, 0.25), "middle": point(1.5)}
RESULTS = {
    "high": result(6.0, 300.0),
    "low": result(8.0, 100.0),
    "late": result(5.25, 220.0),
    "middle": result(5.0, 250.0),
}


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were drawn."""
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "FigureCanvasAgg", lambda f: drawn.append(f) or Canvas(f))
    return drawn


@pytest.mark.parametrize(
    ("metric", "better", "best"),
    [("fid", "lower", "middle"), ("inception_score", "higher", "high")],
)
def test_the_best_point_is_the_lowest_or_the_highest_as_the_metric_says(metric, better, best):
    record = pick_point(metric, POINTS, RESULTS)
    assert record["metric"] == metric
    assert record["better"] == better
    assert record["best"] == best
    assert record["guidance"] == POINTS[best]["guidance"]
    assert record["guidance_interval"] == [0.1, 1.0]
    assert record["num_images"] == 10_000


def test_the_record_has_every_point_in_order_and_is_json():
    record = pick_point("fid", POINTS, dict(reversed(RESULTS.items())))
    assert list(record["points"]) == list(POINTS)
    assert record["points"]["late"] == {
        "guidance": 1.5,
        "guidance_interval": [0.25, 1.0],
        "num_images": 10_000,
        "metrics": {"fid": 5.25, "inception_score": 220.0},
    }
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("metric", ["fid", "inception_score"])
def test_of_equal_points_the_first_wins(metric):
    results = dict.fromkeys(POINTS, result(5.0, 250.0))
    assert pick_point(metric, POINTS, results)["best"] == "high"


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were():
    with pytest.raises(
        ValueError, match=r"'sfid' was not measured .*there are fid, inception_score"
    ):
        pick_point("sfid", POINTS, RESULTS)


def test_a_sweep_without_points_is_refused():
    with pytest.raises(ValueError, match="one point or more"):
        pick_point("fid", {}, {})


@pytest.mark.parametrize("missing", [{}, {"late": None}])
def test_points_that_nobody_has_run_are_refused_by_name(missing):
    results = {name: one for name, one in RESULTS.items() if name != "late"} | missing
    with pytest.raises(ValueError, match=r"\['late'\] have not been evaluated"):
        pick_point("fid", POINTS, results)


def test_different_numbers_of_images_are_not_compared():
    points = POINTS | {"low": point(1.0, num_images=50_000)}
    with pytest.raises(ValueError, match=r"numbers of images .*'low': 50000"):
        pick_point("fid", points, RESULTS)


def test_the_choice_is_told_in_lines_of_yaml():
    text = describe_choice(pick_point("fid", POINTS, RESULTS))
    assert text.splitlines() == [
        "middle has the lowest FID, 5.00 (10,000 images), of 4 points:",
        "guidance: 1.5",
        "guidance_interval: [0.1, 1.0]",
    ]


def test_there_is_a_line_for_each_interval_in_the_order_of_guidance(figures):
    draw_sweep(pick_point("fid", POINTS, RESULTS))
    (panel,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines[:-1]}
    assert lines == {
        "[0.1, 1]": [[1.0, 8.0], [1.5, 5.0], [2.0, 6.0]],
        "[0.25, 1]": [[1.5, 5.25]],
    }
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines)
    assert legend.get_window_extent().x0 >= panel.get_window_extent().x1


@pytest.mark.parametrize("metric", ["fid", "inception_score"])
def test_the_best_point_is_marked_and_named_inside_the_picture(figures, metric):
    record = pick_point(metric, POINTS, RESULTS)
    picture = draw_sweep(record)
    (panel,) = figures[0].axes
    value = RESULTS[record["best"]]["metrics"][metric]
    assert panel.lines[-1].get_xydata().tolist() == [[record["guidance"], value]]
    (name,) = panel.texts
    assert name.get_text().startswith(f"{record['best']}: {value:.1f}")
    box = name.get_window_extent()
    inside = panel.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= picture.width
    assert inside.y0 <= box.y0 < box.y1 <= inside.y1


def test_the_picture_is_deterministic():
    record = pick_point("fid", {"only": point(1.5)}, {"only": RESULTS["low"]})
    assert draw_sweep(record).tobytes() == draw_sweep(record).tobytes()


@pytest.mark.filterwarnings("ignore:One or more dataset names contain")
def test_the_pipeline_picks_draws_and_logs_by_name(tmp_path, caplog):
    catalog = DataCatalog.from_config(
        {
            f"dsd_b.{name}": {
                "type": f"selfdistill.io.report.{kind}Dataset",
                "filepath": f"{tmp_path}/{name}",
            }
            for name, kind in (("sweep", "Metrics"), ("sweep_figure", "Picture"))
        }
    )
    for name, one in RESULTS.items():
        catalog[f"dsd_b.{name}.metrics"] = MemoryDataset(one)
    catalog["params:dsd_b.sweep"] = MemoryDataset({"metric": "fid", "points": POINTS})
    pipeline = create_sweep_pipeline("dsd_b", list(POINTS))
    with caplog.at_level(logging.INFO, logger="selfdistill"):
        SequentialRunner().run(pipeline, catalog)
    assert [node.name for node in pipeline.nodes] == ["pick_guidance_dsd_b", "draw_sweep_dsd_b"]
    assert catalog.load("dsd_b.sweep") == pick_point("fid", POINTS, RESULTS)
    assert catalog.load("dsd_b.sweep_figure").mode == "RGB"
    assert "guidance: 1.5\nguidance_interval: [0.1, 1.0]" in caplog.text
