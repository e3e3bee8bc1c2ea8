"""The sheet of samples and the picture of the training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _CAPTION, _WIDTH = 16, 28, 768
_PAPER, _INK, _GREY = "white", "#1f2328", "#6e7781"


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
    """Return the losses of each row over the images seen, one panel a row.

    Args:
        curves: Records of the training log by row, in order; None or an empty log is left out.
    """
    drawn = {row: records for row, records in curves.items() if records}
    if not drawn:
        return _notice("no training curves yet")
    figure = Figure(figsize=(8, 3 * len(drawn)), dpi=100, layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for panel, (row, records) in zip(panels, drawn.items(), strict=True):
        names = dict.fromkeys(name for record in records for name in record)
        values: list[float] = []
        for name in (name for name in names if name == "loss" or "/" in name):
            points = [(record["nimg"], record[name]) for record in records if name in record]
            panel.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
            values += [value for _, value in points]
        panel.set_yscale("log" if values and min(values) > 0 else "linear")
        panel.set(title=row, xlabel="nimg", ylabel="loss")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


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
