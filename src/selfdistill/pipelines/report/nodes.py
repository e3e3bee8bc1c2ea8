"""Nodes of the report stage; what nobody has run yet comes as None and stays empty."""

import logging
from typing import TYPE_CHECKING, Any

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
            "params:<row>.paper": the row's `PaperConfig`, as written; "params:<row>.data".
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

    return plot_curves({name.removesuffix(".curves"): records for name, records in curves.items()})
