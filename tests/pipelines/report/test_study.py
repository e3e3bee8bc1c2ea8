import json
import math
from typing import Any

import numpy as np
import pytest
from kedro.io import DataCatalog
from kedro.runner import SequentialRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg as Canvas
from matplotlib.figure import Figure

from selfdistill.pipelines.report import pictures
from selfdistill.pipelines.report.pipeline import create_study_pipeline
from selfdistill.pipelines.report.study import draw_study, summarise_study

RANKS = ("target", "online", "projection")


def log(target: list[float], projection: list[float], *, error: float = 0.25) -> list[Any]:
    """Return a log of these ranks, a thousand images a record."""
    records = []
    for number, (of_target, of_projection) in enumerate(zip(target, projection, strict=True)):
        ranks = dict(zip(RANKS, (of_target, of_target, of_projection), strict=True))
        diagnostics = {f"rank_{name}": value for name, value in ranks.items()}
        diagnostics |= {f"rank_{name}_centred": value + 1 for name, value in ranks.items()}
        diagnostics |= {"rank_margin": of_target - of_projection, "std_target": 1.0}
        diagnostics |= {"reconstruction_error": error, "psnr": 20.0, "channel_std_online": [1.0]}
        losses = {"loss": 2.0, "network/reconstruction": 0.5 / (number + 1)}
        records.append({"nimg": 1000 * (number + 1), **losses, "diagnostics": diagnostics})
    return records


GOOD = log([2, 4, 6, 8, 10, 12, 14, 16], [3, 3, 5, 7, 8, 9, 10, 11])
BAD = log([8, 4, 2, 1], [9, 8, 7, 6], error=0.5)


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were drawn."""
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "FigureCanvasAgg", lambda f: drawn.append(f) or Canvas(f))
    return drawn


def test_each_row_has_a_panel_of_its_name_whether_or_not_it_was_run(figures):
    draw_study({"naive": BAD, "ours": GOOD, "later": None, "begun": []})
    panels = figures[0].axes[:4]
    assert [panel.get_title(loc="left") for panel in panels] == ["naive", "ours", "later", "begun"]
    said = [[text.get_text() for text in panel.texts] for panel in panels]
    assert said == [[], [], *[["nobody has run\nthis row yet"]] * 2]
    assert [len(panel.lines) for panel in panels] == [4, 4, 0, 0]


def test_all_panels_have_the_same_scales(figures):
    draw_study({"naive": BAD, "ours": GOOD, "later": None})
    for axes in (figures[0].axes[:3], figures[0].axes[3:]):
        assert len({one.get_ylim() for one in axes}) == 1
        assert len({one.get_xlim() for one in axes}) == 1
    ranks, errors = figures[0].axes[0], figures[0].axes[3]
    assert ranks.get_ylim()[0] == 0
    assert ranks.get_ylim()[1] > 17  # the centred rank of the other row
    assert errors.get_yscale() == "log"


def test_lines_are_the_numbers_of_the_log(figures):
    draw_study({"ours": GOOD})
    panel, twin = figures[0].axes
    target, projection = panel.lines[:2]
    assert target.get_xdata().tolist() == [one["nimg"] for one in GOOD]
    assert target.get_ydata().tolist() == [2, 4, 6, 8, 10, 12, 14, 16]
    assert projection.get_ydata().tolist() == [3, 3, 5, 7, 8, 9, 10, 11]
    loss, error = twin.lines
    assert loss.get_ydata().tolist() == [one["network/reconstruction"] for one in GOOD]
    assert error.get_ydata().tolist() == [0.25] * 8


def test_errors_that_reach_zero_are_drawn_on_a_linear_scale(figures):
    draw_study({"ours": log([2, 3], [1, 1], error=0.0)})
    assert figures[0].axes[1].get_yscale() == "linear"


@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_one_legend_is_whole_and_hides_nothing(figures, num):
    draw_study({f"row_{number}": GOOD for number in range(num)})
    (figure,) = figures
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    assert all(box.y0 >= panel.get_tightbbox().y1 for panel in figure.axes)
    assert len(legend.get_texts()) == 7


def test_a_log_without_diagnostics_shows_its_loss_alone(figures):
    draw_study({"other": [{"nimg": 5, "loss": 1.0, "network/reconstruction": 0.5}]})
    panel, twin = figures[0].axes
    assert not any(len(line.get_ydata()) for line in panel.lines)
    assert twin.lines[0].get_ydata().tolist() == [0.5]


def test_the_figure_is_deterministic_and_drawn_before_anything_was_run():
    assert draw_study({"a": GOOD}).tobytes() == draw_study({"a": GOOD}).tobytes()
    empty = draw_study({"a": None, "b": None})
    assert empty.mode == "RGB"
    assert len(np.unique(np.asarray(empty))) > 1


def test_the_summary_has_the_first_record_and_the_mean_of_the_last_quarter():
    row = summarise_study({"ours": GOOD})["ours"]
    assert row["nimg"] == 8000
    assert row["first"]["rank_target"] == 2
    assert row["end"]["rank_target"] == 15
    assert row["end"]["rank_projection_centred"] == 11.5
    assert row["end"]["rank_margin"] == 4.5
    assert row["end"]["psnr"] == 20
    assert list(row["first"]) == list(row["end"])


def test_the_summary_says_how_often_equation_5_holds():
    rows = summarise_study({"ours": GOOD, "naive": BAD, "later": None, "begun": []})
    assert rows["ours"]["eq5_share"] == 0.875
    assert rows["naive"]["eq5_share"] == 0
    assert rows["later"] is None
    assert rows["begun"] is None


def test_equal_ranks_do_not_satisfy_equation_5():
    assert summarise_study({"a": log([3], [3])})["a"]["eq5_share"] == 0


def test_the_summary_has_six_digits_and_no_nan():
    records = log([100 / 3, 1], [2 / 3, 1], error=math.nan)
    records[0]["diagnostics"]["psnr"] = math.inf
    del records[0]["diagnostics"]["std_target"]
    row = summarise_study({"a": records})["a"]
    assert row["first"]["rank_target"] == 33.3333
    assert row["first"]["rank_projection"] == 0.666667
    assert row["first"]["psnr"] is None
    assert row["first"]["std_target"] is None
    assert row["end"]["reconstruction_error"] is None
    json.dumps(row, allow_nan=False)


@pytest.mark.filterwarnings("ignore:One or more dataset names contain")
def test_the_pipeline_makes_figure_and_summary_by_name(tmp_path):
    io = "selfdistill.io.report"
    entry = {"type": f"{io}.CurvesDataset", "filepath": f"{tmp_path}/{{row}}.jsonl"}
    catalog = DataCatalog.from_config(
        {
            "{row}.curves": {**entry, "optional": True},
            "figure_{study}": {
                "type": f"{io}.PictureDataset",
                "filepath": f"{tmp_path}/{{study}}.png",
            },
            "summary_{study}": {
                "type": f"{io}.MetricsDataset",
                "filepath": f"{tmp_path}/{{study}}.json",
            },
        }
    )
    (tmp_path / "naive.jsonl").write_text("".join(json.dumps(one) + "\n" for one in BAD))
    pipeline = create_study_pipeline("collapse", ["naive", "ours"])
    SequentialRunner().run(pipeline, catalog)
    assert sorted(node.name for node in pipeline.nodes) == ["draw_collapse", "summarise_collapse"]
    assert catalog.load("figure_collapse").width > 600
    assert catalog.load("summary_collapse") == summarise_study({"naive": BAD, "ours": None})
