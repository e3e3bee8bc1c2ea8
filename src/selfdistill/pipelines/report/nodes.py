"""Nodes of the report stage; what nobody has run yet comes as None and stays empty."""

import logging
from typing import TYPE_CHECKING, Any

from selfdistill.base_config import as_written
from selfdistill.pipelines.report.table import Table

if TYPE_CHECKING:
    from PIL.Image import Image
else:  # Kedro resolves all hints of a node
    Image = Any

logger = logging.getLogger(__name__)


def tabulate(**inputs: Any) -> Table:
    """Set the paper's numbers beside ours, and log what has been measured.

    Args:
        inputs: By catalog name, "<row>.<sampling>.metrics": the evaluate stage's dict or None;
            "params:<row>": all parameters of the row; "<row>.curves", of rows whose checkpoint is
            the best of several: the records of a training log or None.
    """
    table = Table.collect(inputs)
    logger.info("Measured so far:\n%s", table.text())
    return table


def draw_sheet(**grids: Image | None) -> Image:
    """Put the sample grids of all rows on one sheet, with captions.

    Args:
        grids: By catalog name, "<row>.<sampling>.grid": a picture or None.
    """
    from selfdistill.pipelines.report.pictures import compose_sheet

    return compose_sheet({name.removesuffix(".grid"): grid for name, grid in grids.items()})


def draw_curves(**curves: list[dict[str, Any]] | None) -> Image:
    """Draw the losses of all rows over the images seen.

    Args:
        curves: By catalog name, "<row>.curves": the records of a training log or None.
    """
    from selfdistill.pipelines.report.pictures import plot_curves

    return plot_curves(_by_row(curves))


def draw_study(**curves: list[dict[str, Any]] | None) -> Image:
    """Draw effective ranks and reconstruction of several rows side by side.

    Args:
        curves: By catalog name, "<row>.curves": the records of a training log or None.
    """
    from selfdistill.pipelines.report import study

    return study.draw_study(_by_row(curves))


def summarise_study(**curves: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Put effective ranks and reconstruction of several rows into numbers.

    Args:
        curves: By catalog name, "<row>.curves": the records of a training log or None.

    Returns:
        JSON values by row, None where nobody has run it.
    """
    from selfdistill.pipelines.report import study

    return study.summarise_study(_by_row(curves))


def pick_guidance(**inputs: Any) -> dict[str, Any]:
    """Find the best of a row's sweep, and log what to write into its parameters.

    Args:
        inputs: By catalog name, "<row>.<point>.metrics": the evaluate stage's dict or None; and
            "params:<row>.sweep": {"metric": name, "points": {point: sampling}}, as written.

    Returns:
        JSON values: the metric, the best point, its guidance, and all points.

    Raises:
        ValueError: If the points cannot be compared, or were not measured.
    """
    from selfdistill.pipelines.report.sweep import describe_choice, pick_point

    (params,) = (name for name in inputs if name.startswith("params:"))
    row = params.removeprefix("params:").removesuffix(".sweep")
    sweep = inputs[params]
    points = {point: as_written(sampling) for point, sampling in sweep["points"].items()}
    results = {point: inputs[f"{row}.{point}.metrics"] for point in points}
    record = pick_point(sweep["metric"], points, results)
    logger.info(
        "Sweep of %s: %s\nWith these lines in its `samplings.guided`, its number is made by "
        "kedro run --pipeline=%s --from-nodes=%s.guided.sample",
        row,
        describe_choice(record),
        row,
        row,
    )
    return record


def draw_sweep(record: dict[str, Any]) -> Image:
    """Draw a sweep's metric over the guidance scale.

    Args:
        record: What `pick_guidance` returned.
    """
    from selfdistill.pipelines.report import sweep

    return sweep.draw_sweep(record)


def collect_figure(**inputs: Any) -> dict[str, Any]:
    """Put together what a figure shows.

    Args:
        inputs: By catalog name, "<row>.<sampling>.metrics": the evaluate stage's dict or None;
            "params:<row>": all parameters of the row; "params:figures.<name>": the figure.

    Returns:
        JSON values: metric, x, and points by caption.

    Raises:
        ValueError: If a row has no number at the figure's x.
    """
    from selfdistill.pipelines.report.figure import collect_points
    from selfdistill.pipelines.report.figure_config import FigureConfig

    (params,) = (name for name in inputs if name.startswith("params:figures."))
    results = {
        name.removesuffix(".metrics"): result
        for name, result in inputs.items()
        if name.endswith(".metrics")
    }
    rows = {
        name.removeprefix("params:"): as_written(row)
        for name, row in inputs.items()
        if name.startswith("params:") and name != params
    }
    return collect_points(FigureConfig.model_validate(as_written(inputs[params])), results, rows)


def draw_figure(record: dict[str, Any]) -> Image:
    """Draw a figure.

    Args:
        record: What `collect_figure` returned.
    """
    from selfdistill.pipelines.report.figure import draw_lines

    return draw_lines(record)


def _by_row(curves: dict[str, Any]) -> dict[str, Any]:
    return {name.removesuffix(".curves"): records for name, records in curves.items()}
