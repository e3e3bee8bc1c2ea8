"""The collapse study: effective ranks and reconstruction of several rows, side by side.

"Diffusion as Self-Distillation: End-to-End Latent Diffusion In One Model", 2025,
arXiv:2511.14716v1, Fig. 2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from selfdistill.metrics import rank
from selfdistill.metrics.curves import Series
from selfdistill.pipelines.report.pictures import to_picture

Record = Mapping[str, Any]
Looks = Mapping[str, tuple[str, Mapping[str, Any]]]

_INK, _GREY = "#1f2328", "#6e7781"
# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
_TARGET, _PROJECTION, _ERROR = "#0072B2", "#D55E00", "#3c4043"
_RANKS: dict[str, tuple[str, dict[str, Any]]] = {
    rank.RANK_TARGET: ("target latent", {"color": _TARGET, "linewidth": 2.0}),
    rank.RANK_PROJECTION: ("projection", {"color": _PROJECTION, "linewidth": 2.0}),
    rank.RANK_TARGET_CENTRED: (
        "target latent, centred",
        {"color": _TARGET, "linewidth": 1.0, "linestyle": ":"},
    ),
    rank.RANK_PROJECTION_CENTRED: (
        "projection, centred",
        {"color": _PROJECTION, "linewidth": 1.0, "linestyle": ":"},
    ),
}
_ERRORS: dict[str, tuple[str, dict[str, Any]]] = {
    rank.RECONSTRUCTION_LOSS: (
        "reconstruction loss in training",
        {"color": _ERROR, "linewidth": 0.9, "alpha": 0.75},
    ),
    rank.RECONSTRUCTION_ERROR: (
        "reconstruction error of clean images",
        {"color": _ERROR, "linewidth": 1.4, "linestyle": (0, (5, 2))},
    ),
}
_VIOLATED: dict[str, Any] = {"color": _PROJECTION, "alpha": 0.16, "linewidth": 0}
_NOTICE: dict[str, Any] = {
    "xycoords": "axes fraction",
    "ha": "center",
    "va": "center",
    "color": _GREY,
}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": "small", "labelcolor": _INK}
_SUMMARISED = (
    rank.RANK_TARGET,
    rank.RANK_PROJECTION,
    rank.RANK_ONLINE,
    rank.RANK_TARGET_CENTRED,
    rank.RANK_PROJECTION_CENTRED,
    rank.RANK_ONLINE_CENTRED,
    rank.RANK_MARGIN,
    rank.STD_TARGET,
    rank.RECONSTRUCTION_ERROR,
    rank.PSNR,
)


def draw_study(curves: Mapping[str, Sequence[Record] | None]) -> Image.Image:
    """Return one panel a row, side by side and all to the same scales.

    The left axis has the effective ranks, shaded where Eq. 5 is violated, the right one the
    reconstruction, on a logarithmic scale if all of it is positive.

    Args:
        curves: Records of the training log by row, in order; the panel of None or of an empty log
            says that nobody has run the row.
    """
    width = max(1.4 + 2.7 * len(curves), 9)  # inches; the legend needs nine
    figure = Figure(figsize=(width, 4.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(curves), sharex=True, sharey=True, squeeze=False)[0]
    twins = [panel.twinx() for panel in panels]
    for panel, twin, (row, records) in zip(panels, twins, curves.items(), strict=True):
        panel.set_title(row, loc="left", fontsize="medium", color=_INK)
        if records:
            _plot_ranks(panel, records)
            _plot(twin, records, _ERRORS)
            panel.grid(alpha=0.25)
        else:
            panel.annotate("nobody has run\nthis row yet", (0.5, 0.5), **_NOTICE)
            panel.tick_params(bottom=False, labelbottom=False)
    logs = [records for records in curves.values() if records]
    errors = [y for records in logs for name in _ERRORS for y in _series(records, name)[1]]
    _scale(panels, twins, errors)
    figure.supxlabel("images seen", fontsize="medium", color=_INK)
    figure.legend(handles=_handles(), loc="outside upper center", ncols=4, **_LEGEND)
    return to_picture(figure)


def summarise_study(curves: Mapping[str, Sequence[Record] | None]) -> dict[str, Any]:
    """Return what the panels show as numbers.

    Args:
        curves: Records of the training log by row, in order; None or an empty log where nobody has
            run the row.

    Returns:
        JSON values by row, None where nobody has run it: "nimg", the images seen; "first", numbers
        by name at the first record; "end", their means over the last quarter of the records;
        "eq5_share", the share of records whose rank margin is positive, of those that have one.
        Numbers have six significant digits; one that no record has, or that is not finite, is None.
    """
    return {row: _summary(records) if records else None for row, records in curves.items()}


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    end = records[-math.ceil(len(records) / 4) :]
    margins = _series(records, rank.RANK_MARGIN)[1]
    return {
        "nimg": records[-1][rank.NIMG],
        "eq5_share": _mean([margin > 0 for margin in margins]),
        "first": {name: _mean(_series(records[:1], name)[1]) for name in _SUMMARISED},
        "end": {name: _mean(_series(end, name)[1]) for name in _SUMMARISED},
    }


def _mean(values: Sequence[float]) -> float | None:
    mean = fmean(values) if values else math.nan
    return float(f"{mean:.6g}") if math.isfinite(mean) else None


def _series(records: Iterable[Record], name: str) -> Series:
    """Return the images seen and the numbers of the records that have this one."""
    found = [
        (record[rank.NIMG], numbers[name])
        for record in records
        for numbers in (record, record.get(rank.DIAGNOSTICS, {}))
        if name in numbers
    ]
    return [nimg for nimg, _ in found], [value for _, value in found]


def _plot(panel: Axes, records: Sequence[Record], looks: Looks) -> None:
    for name, (_, look) in looks.items():
        nimg, values = _series(records, name)
        panel.plot(nimg, values, marker="." if len(values) == 1 else None, **look)


def _plot_ranks(panel: Axes, records: Sequence[Record]) -> None:
    """Draw the ranks, and shade where that of the projection is the higher."""
    nimg, target = map(np.asarray, _series(records, rank.RANK_TARGET))
    projection = np.asarray(_series(records, rank.RANK_PROJECTION)[1])
    violated = projection > target
    panel.fill_between(nimg, target, projection, where=violated, interpolate=True, **_VIOLATED)
    _plot(panel, records, _RANKS)


def _scale(panels: Sequence[Axes], twins: Sequence[Axes], errors: Sequence[float]) -> None:
    """Give all panels the same axes, and name them at the outer ones; `errors` are all drawn."""
    for panel, twin in zip(panels, twins, strict=True):
        if twin is not twins[0]:
            twin.sharey(twins[0])
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set_zorder(twin.get_zorder() + 1)  # the ranks above the errors
        panel.patch.set_visible(False)
        for axes in (panel, twin):
            axes.margins(x=0.01)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(color=_GREY, labelcolor=_INK, labelsize="small")
        outer = twin is twins[-1]
        twin.spines["right"].set_visible(outer)
        twin.tick_params(axis="y", which="both", right=outer, labelright=outer)
    if errors and min(errors) > 0:
        twins[0].set_yscale("log")
        twins[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        twins[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        twins[0].yaxis.set_minor_formatter(NullFormatter())
    elif not errors:
        twins[0].set_yticks([])
    if any(panel.lines for panel in panels):
        panels[0].set_ylim(bottom=0)
    else:
        panels[0].set_yticks([])
    panels[0].set_ylabel("effective rank", color=_INK)
    twins[-1].set_ylabel("reconstruction", color=_INK)


def _handles() -> list[Artist]:
    lines = [Line2D([], [], label=label, **look) for label, look in (_RANKS | _ERRORS).values()]
    return [*lines, Patch(label="projection above target: Eq. 5 violated", **_VIOLATED)]
