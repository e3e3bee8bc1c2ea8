"""Figures of lines: what has been measured, and what has not."""

import pytest
from matplotlib.axes import Axes

from selfdistill.pipelines.report import nodes
from selfdistill.pipelines.report.figure import collect_points, draw_lines
from selfdistill.pipelines.report.figure_config import FigureConfig

ROWS = {
    "base": {"train": {"total_nimg": 100}, "method": {"target": {"mix_prev": 0.0}}},
    "tuned": {"train": {"total_nimg": 300}, "method": {"target": {"mix_prev": 0.2}}},
}


def figure(**changes):
    values = {
        "metric": "fd_tiny", "x": "nfe", "log": True,
        "lines": {"Base": ["base.n4", "base.n10"], "Tuned": ["tuned.n4"]},
    }  # fmt: skip
    return FigureConfig.model_validate(values | changes)


def result(value, nfe, **more):
    return {"metrics": {"fd_tiny": value}, "protocol": {"samples": {"nfe": nfe}}, **more}


RESULTS = {
    "base.n4": result(4.0, 4, std={"fd_tiny": 0.5}),
    "base.n10": result(1.0, 10),
    "tuned.n4": None,
}


def test_points_are_what_was_measured_and_the_rest_stays_empty():
    record = collect_points(figure(), RESULTS, ROWS)
    assert record["lines"] == {
        "Base": [
            {"sampling": "base.n4", "x": 4, "value": 4.0, "std": 0.5},
            {"sampling": "base.n10", "x": 10, "value": 1.0},
        ],
        "Tuned": [{"sampling": "tuned.n4", "x": None, "value": None}],
    }


def test_x_may_be_any_number_of_a_rows_parameters():
    lines = {"All": ["base.n10", "tuned.n4"]}
    for x, values in (("train.total_nimg", [100, 300]), ("method.target.mix_prev", [0.0, 0.2])):
        record = collect_points(figure(x=x, lines=lines), RESULTS, ROWS)
        assert [point["x"] for point in record["lines"]["All"]] == values
    with pytest.raises(ValueError, match=r"base has no number at train\.seed"):
        collect_points(figure(x="train.seed"), RESULTS, ROWS)


def test_a_level_has_no_x_and_is_drawn_across(monkeypatch):
    chosen = figure(lines={"All": ["base.n10"]}, levels={"Start": "base.n4", "Later": "tuned.n4"})
    assert set(chosen.samplings) == {"base.n10", "base.n4", "tuned.n4"}
    record = collect_points(chosen, RESULTS, ROWS)
    assert record["levels"] == {
        "Start": {"sampling": "base.n4", "value": 4.0, "std": 0.5},
        "Later": {"sampling": "tuned.n4", "value": None},
    }
    heights = []
    monkeypatch.setattr(Axes, "axhline", lambda _, y, **__: heights.append(y))
    draw_lines(record)
    assert heights == [4.0]


def test_the_node_finds_its_inputs_by_their_names():
    inputs = {f"{name}.metrics": one for name, one in RESULTS.items()}
    inputs |= {f"params:{row}": values for row, values in ROWS.items()}
    inputs |= {"params:figures.few": figure().model_dump(mode="json")}
    assert nodes.collect_figure(**inputs) == collect_points(figure(), RESULTS, ROWS)


def test_pictures_show_points_that_are_there():
    empty = dict.fromkeys(RESULTS)
    nothing, some, all_three = (
        draw_lines(collect_points(figure(), results, ROWS))
        for results in (empty, RESULTS, {**RESULTS, "tuned.n4": result(0.5, 4)})
    )
    assert nothing.size == some.size == all_three.size
    assert len({picture.tobytes() for picture in (nothing, some, all_three)}) == 3


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="no metric 'fd'"):
        figure(metric="fd")
