"""Rows whose checkpoint is the best of several: by which number, and out of how many.

That number is the smallest of many draws, and better than what the same weights give another time:
it stands apart from what is measured of the checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from selfdistill.metrics.config import METRICS

HEADING = "Selected while training: the best of several evaluations (optimistic)"
HEADS = ("row", "metric", "best value", "at images", "evaluations")


@dataclass(frozen=True)
class Selected:
    """A selection.

    Attributes:
        row: The row.
        metric: Name of the metric.
        trail: Images seen and value of each evaluation, in order.
    """

    row: str
    metric: str
    trail: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, row: str, records: Sequence[Mapping[str, Any]] | None) -> Self | None:
        """Find the selection in a training log; None: nobody has run the row, or it has none."""
        found = [line for line in records or () if line.get("selection")]
        if not found:
            return None
        (metric,) = found[-1]["selection"]
        return cls(row, metric, tuple((one["nimg"], one["selection"][metric]) for one in found))

    def line(self) -> tuple[str, ...]:
        """Return the cells below `HEADS`."""
        metric = METRICS[self.metric]
        choose = min if metric.better == "lower" else max
        nimg, value = choose(self.trail, key=lambda one: one[1])
        shown = format(value, metric.digits)
        return self.row, metric.label, shown, f"{nimg:,}", str(len(self.trail))
