"""The sweep of a guidance scale: which of a row's samplings is the best, and the picture of it."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from PIL import Image

from selfdistill.metrics.config import METRICS
from selfdistill.pipelines.report.pictures import to_picture

_INK = "#1f2328"
# Okabe and Ito's palette, which colour-blind readers can tell apart, and a marker for each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_LEGEND: dict[str, Any] = {"title": "interval", "frameon": False, "fontsize": "small"}
_CHOSEN = ("guidance", "guidance_interval")
_BEST = {"lower": "lowest", "higher": "highest"}


def pick_point(
    metric: str, points: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the best of several samplings, with all that were compared.

    Args:
        metric: What decides; of equals the first wins.
        points: Samplings as written in YAML, by name, in order.
        results: The evaluate stage's dicts by the same names; None where nobody has run it.

    Returns:
        JSON values: "metric"; "better", "lower" or "higher"; "best", a name; the best's
        "guidance" and "guidance_interval"; "num_images" of each point; "points", by name in the
        order of `points`, each with "guidance", "guidance_interval", "num_images" and "metrics".

    Raises:
        ValueError: If there are no points, one has not been evaluated, the metric was not measured
            or the numbers of images differ.
    """
    if not points:
        raise ValueError("a sweep needs one point or more, got none")
    if missing := [name for name in points if results.get(name) is None]:
        raise ValueError(f"points {missing} have not been evaluated; run the row's sweep first")
    for name in points:
        if metric not in (measured := results[name]["metrics"]):
            there = ", ".join(measured)
            raise ValueError(f"{metric!r} was not measured of point {name!r}; there are {there}")
    nums = {name: point["num_images"] for name, point in points.items()}
    if len(set(nums.values())) > 1:
        raise ValueError(f"points of different numbers of images cannot be compared: {nums}")
    better = METRICS[metric].better
    choose = min if better == "lower" else max
    best = choose(points, key=lambda name: results[name]["metrics"][metric])
    return {
        "metric": metric,
        "better": better,
        "best": best,
        **{key: points[best][key] for key in (*_CHOSEN, "num_images")},
        "points": {
            name: {key: point[key] for key in (*_CHOSEN, "num_images")}
            | {"metrics": dict(results[name]["metrics"])}
            for name, point in points.items()
        },
    }


def describe_choice(record: Mapping[str, Any]) -> str:
    """Return the best point and its number, and below it the YAML lines that choose it.

    Args:
        record: What `pick_point` returned.
    """
    metric = METRICS[record["metric"]]
    _, value = _best_value(record)
    return (
        f"{record['best']} has the {_BEST[record['better']]} {metric.label}, "
        f"{value} ({record['num_images']:,} images), of {len(record['points'])} points:\n"
        f"guidance: {record['guidance']}\n"
        f"guidance_interval: {list(record['guidance_interval'])}"
    )


def draw_sweep(record: Mapping[str, Any]) -> Image.Image:
    """Return the metric over the guidance scale, one line an interval, the best point marked.

    Args:
        record: What `pick_point` returned.
    """
    metric = METRICS[record["metric"]]
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    panel = figure.subplots()
    for number, (interval, line) in enumerate(_lines(record).items()):
        panel.plot(
            *zip(*sorted(line), strict=True),
            label=f"[{interval[0]:g}, {interval[1]:g}]",
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
        )
    _mark_best(panel, record)
    panel.margins(0.08, 0.16)
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.set_xlabel("guidance scale")
    panel.set_ylabel(metric.label)
    title = f"{metric.label} of {record['num_images']:,} images, {record['better']} is better"
    panel.set_title(title, loc="left", fontsize="medium")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", **_LEGEND)
    return to_picture(figure)


def _lines(record: Mapping[str, Any]) -> dict[tuple[float, float], list[tuple[float, float]]]:
    """Return guidance and metric of the points by interval."""
    lines: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for point in record["points"].values():
        start, end = point["guidance_interval"]
        value = point["metrics"][record["metric"]]
        lines.setdefault((start, end), []).append((point["guidance"], value))
    return lines


def _best_value(record: Mapping[str, Any]) -> tuple[float, str]:
    """Return the best point's number, and as the field prints it."""
    value = record["points"][record["best"]]["metrics"][record["metric"]]
    return value, format(value, METRICS[record["metric"]].digits)


def _mark_best(panel: Axes, record: Mapping[str, Any]) -> None:
    """Put a ring round the best point and its name on the side where no line is."""
    value, text = _best_value(record)
    best = (record["guidance"], value)
    scales = [point["guidance"] for point in record["points"].values()]
    on_the_left = best[0] < (min(scales) + max(scales)) / 2
    panel.plot(*best, marker="o", markersize=13, fillstyle="none", color=_INK, markeredgewidth=1.6)
    panel.annotate(
        f"{record['best']}: {text}",
        best,
        xytext=(-6 if on_the_left else 6, -17 if record["better"] == "lower" else 17),
        textcoords="offset points",
        ha="left" if on_the_left else "right",
        va="center",
    )
