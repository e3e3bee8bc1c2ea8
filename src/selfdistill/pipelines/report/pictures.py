"""The sheet of samples and the picture of the training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image, ImageDraw, ImageFont

from selfdistill.metrics.curves import Series, loss_curves

_MARGIN, _CAPTION, _WIDTH = 16, 28, 768
_PAPER, _INK, _GREY = "white", "#1f2328", "#6e7781"
_TOTAL = "loss"


def compose_sheet(grids: Mapping[str, Image.Image | None]) -> Image.Image:
    """Return all grids on one picture: a line for each row, its samplings side by side.

    Args:
        grids: Pictures by "<row>.<sampling>", in order; None is left out.
    """
    lines: dict[str, list[tuple[str, Image.Image]]] = {}
    for name, grid in grids.items():
        if grid is not None:
            row, sampling = name.rsplit(".", 1)
            lines.setdefault(row, []).append((f"{row}, {sampling}", _fit(grid)))
    if not lines:
        return _notice("no samples yet")
    widths = [sum(grid.width + _MARGIN for _, grid in line) for line in lines.values()]
    heights = [max(grid.height for _, grid in line) + _CAPTION for line in lines.values()]
    size = (max(widths) + _MARGIN, sum(heights) + _MARGIN * (len(heights) + 1))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    y = _MARGIN
    for line, height in zip(lines.values(), heights, strict=True):
        x = _MARGIN
        for caption, grid in line:
            draw.text((x, y), caption, fill=_INK, font=font)
            sheet.paste(grid, (x, y + _CAPTION))
            x += grid.width + _MARGIN
        y += height + _MARGIN
    return sheet


def plot_curves(curves: Mapping[str, Sequence[Mapping[str, Any]] | None]) -> Image.Image:
    """Return the losses of each row over the images seen, one panel a row, all to the same scale.

    Args:
        curves: Records of the training log by row, in order; None or an empty log is left out.
    """
    logs = {row: loss_curves(records or []) for row, records in curves.items()}
    drawn = {row: series for row, series in logs.items() if series}
    if not drawn:
        return _notice("no training curves yet")
    names = dict.fromkeys(name for panel in drawn.values() for name in panel if name != _TOTAL)
    looks: dict[str, dict[str, Any]] = {
        name: {"color": f"C{number % 10}", "linewidth": 1.2} for number, name in enumerate(names)
    }
    looks[_TOTAL] = {"color": _INK, "linewidth": 1.8}
    figure = Figure(figsize=(9, 2.8 * len(drawn)), dpi=100, layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (row, series) in zip(panels, drawn.items(), strict=True):
        _plot_row(panel, row, series, looks)
    lowest = min(min(values) for series in drawn.values() for _, values in series.values())
    panels[-1].set_yscale("log" if lowest > 0 else "linear")
    panels[-1].set_xlabel("images seen")
    return to_picture(figure)


def to_picture(figure: Figure) -> Image.Image:
    """Return a figure as a picture, without a display."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _plot_row(
    panel: Axes, row: str, series: Mapping[str, Series], looks: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw one row's losses; the legend, outside, has the order in which the curves end."""
    for name, (nimg, values) in sorted(series.items(), key=lambda item: -item[1][1][-1]):
        panel.plot(nimg, values, label=name, **looks[name])
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_title(row, loc="left", fontsize="medium")
    panel.set_ylabel("loss")
    panel.margins(x=0.01)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)


def _fit(grid: Image.Image) -> Image.Image:
    """Bring a grid near the sheet's column width: whole pixels up, filtered down."""
    if grid.width > _WIDTH:
        size = (_WIDTH, round(grid.height * _WIDTH / grid.width))
        return grid.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    factor = _WIDTH // grid.width
    size = (grid.width * factor, grid.height * factor)
    return grid.convert("RGB").resize(size, Image.Resampling.NEAREST)


def _notice(text: str) -> Image.Image:
    picture = Image.new("RGB", (_WIDTH, 96), _PAPER)
    font = ImageFont.load_default(16)
    ImageDraw.Draw(picture).text((_WIDTH / 2, 48), text, fill=_GREY, font=font, anchor="mm")
    return picture
