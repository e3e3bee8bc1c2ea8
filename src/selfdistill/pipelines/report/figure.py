"""A figure of lines: one metric of many samplings over what they differ in."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter
from PIL import Image

from selfdistill.metrics.config import METRICS
from selfdistill.pipelines.report.figure_config import FigureConfig
from selfdistill.pipelines.report.pictures import to_picture

# Of Okabe and Ito's palette, which colour-blind readers can tell apart; and a mark for each.
_COLOURS = ("#3c4043", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
_MARKERS = "osD^vPX"
NFE, _NIMG = "nfe", "train.total_nimg"
_AXES = {NFE: "evaluations of the network a sample", _NIMG: "images seen"}


def collect_points(
    config: FigureConfig,
    results: Mapping[str, Mapping[str, Any] | None],
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what a figure shows, as JSON values.

    Args:
        config: The figure.
        results: What the evaluate stage made, by "<row>.<sampling>"; None: nobody has run it.
        rows: Parameters of the rows, as written.

    Returns:
        The metric, x and log; by caption of a line a list of points: sampling, x, value, and its
        std over repeats if there is one; by caption of a level one point, without x. None where
        nobody has measured.

    Raises:
        ValueError: If a row has no number at x; it names the row and the path.
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for caption, samplings in config.lines.items():
        for name in samplings:
            row, result = name.partition(".")[0], results[name]
            point = {"sampling": name, "x": _x(config.x, row, rows[row], result)}
            lines.setdefault(caption, []).append(point | _measured(config.metric, result))
    levels = {
        caption: {"sampling": name, **_measured(config.metric, results[name])}
        for caption, name in config.levels.items()
    }
    what = {"metric": config.metric, "x": config.x, "log": config.log}
    return {**what, "lines": lines, "levels": levels}


def _measured(metric: str, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the value of a metric, and its std over repeats if there is one."""
    if result is None:
        return {"value": None}
    std = result.get("std", {}).get(metric)
    return {"value": result["metrics"].get(metric)} | ({} if std is None else {"std": std})


def _x(
    path: str, row: str, parameters: Mapping[str, Any], result: Mapping[str, Any] | None
) -> float | None:
    if path == NFE:
        return result["protocol"]["samples"]["nfe"] if result else None
    value: Any = parameters
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"x of the figure: {row} has no number at {path}, but {value!r}")
    return value


def draw_lines(record: Mapping[str, Any]) -> Image.Image:
    """Return the picture of what `collect_points` found; what nobody has measured is left out.

    Args:
        record: The points.
    """
    metric = METRICS[record["metric"]]
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    panel = figure.subplots()
    drawn = [_draw_line(panel, *one) for one in enumerate(record["lines"].items())]
    levels = enumerate(record["levels"].items(), len(drawn))
    measured = any([*drawn, *[_draw_level(panel, *one) for one in levels]])
    if record["log"]:
        panel.set_xscale("log")
        panel.set_yscale("log")
        ticks = sorted({p["x"] for line in record["lines"].values() for p in line if p["x"]})
        panel.set_xticks(ticks)
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_formatter(EngFormatter(sep="") if record["x"] == _NIMG else "{x:g}")
    heading = f"{metric.label}, {metric.better} is better"
    panel.set_title(heading if measured else "nobody has measured yet", loc="left")
    panel.set_xlabel(_AXES.get(record["x"], record["x"]))
    panel.set_ylabel(metric.label)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if measured:
        figure.legend(loc="outside right upper", frameon=False)
    return to_picture(figure)


def _draw_line(panel: Axes, number: int, line: tuple[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Draw the points of a line that there are, with their std, and return whether any are."""
    caption, points = line
    known = sorted(
        (point["x"], point["value"], point.get("std", 0.0))
        for point in points
        if point["value"] is not None
    )
    if known:
        x, y, std = zip(*known, strict=True)
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        panel.errorbar(x, y, std, label=caption, color=colour, marker=marker, markersize=5)
    return bool(known)


def _draw_level(panel: Axes, number: int, level: tuple[str, Mapping[str, Any]]) -> bool:
    """Draw a value across, with its std, if there is one."""
    caption, point = level
    value, colour = point["value"], _COLOURS[number % len(_COLOURS)]
    if value is not None:
        panel.axhline(value, label=caption, color=colour, linestyle="--")
        if std := point.get("std"):
            panel.axhspan(value - std, value + std, color=colour, alpha=0.15, linewidth=0)
    return value is not None
