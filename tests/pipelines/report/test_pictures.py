import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg as Canvas
from matplotlib.figure import Figure
from PIL import Image

from selfdistill.pipelines.report import pictures
from selfdistill.pipelines.report.pictures import compose_sheet, plot_curves

RED, BLUE = Image.new("RGB", (80, 40), "red"), Image.new("RGB", (2000, 1000), "blue")
RECORDS = [
    {"nimg": n, "loss": 2.0 / (n + 1), "generator/sid": -1.0, "lr": 1.0, "grad_norm": 0.1}
    for n in range(5)
]


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3)[::7].tolist()}


def test_a_sheet_shows_every_grid_that_was_made():
    sheet = compose_sheet({"dsd_b.plain": RED, "dsd_b.guided": None, "dsd_s.plain": BLUE})
    assert {(255, 0, 0), (0, 0, 255)} <= colours(sheet)


def test_samplings_stand_side_by_side_and_rows_below_each_other():
    one = compose_sheet({"a.plain": RED})
    beside = compose_sheet({"a.plain": RED, "a.guided": RED})
    below = compose_sheet({"a.plain": RED, "b.plain": RED})
    assert beside.width > 1.9 * one.width
    assert beside.height == one.height
    assert below.height > 1.9 * one.height
    assert below.width == one.width


def test_small_grids_are_enlarged_without_blur_and_large_ones_reduced():
    small = compose_sheet({"a.plain": RED})
    large = compose_sheet({"a.plain": BLUE})
    assert 700 < small.width < 900
    assert 700 < large.width < 900


def test_without_grids_or_curves_a_notice_takes_their_place():
    for notice in (compose_sheet({"a.plain": None}), plot_curves({"a": None, "b": []})):
        assert notice.mode == "RGB"
        assert len(colours(notice)) > 1


def test_curves_have_a_panel_for_each_row_that_was_trained():
    one = plot_curves({"a": RECORDS, "b": None})
    two = plot_curves({"a": RECORDS, "b": RECORDS})
    assert two.height == 2 * one.height
    assert two.mode == "RGB"


def test_the_legend_stands_beside_the_curves_and_hides_none(monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "FigureCanvasAgg", lambda f: figures.append(f) or Canvas(f))
    plot_curves({"a": RECORDS, "b": RECORDS})
    for panel in figures[0].axes:
        legend = panel.get_legend()
        assert legend.get_window_extent().x0 >= panel.get_window_extent().x1
        assert legend.get_window_extent().x1 <= figures[0].bbox.x1
        assert [text.get_text() for text in legend.get_texts()] == ["loss", "sid"]
    assert figures[0].axes[-1].get_xlabel() == "images seen"


def test_pictures_are_deterministic():
    assert plot_curves({"a": RECORDS}).tobytes() == plot_curves({"a": RECORDS}).tobytes()
    assert compose_sheet({"a.b": RED}).tobytes() == compose_sheet({"a.b": RED}).tobytes()
