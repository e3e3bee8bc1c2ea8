"""How the best state of a training is selected. Every command reads this: nothing heavy."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config
from selfdistill.metrics.config import METRICS
from selfdistill.metrics.metric import Metric

Count = Annotated[int, Field(gt=0)]

_KINDS = ("moments", "scores")  # that are merged over ranks without keeping every feature


class SelectionConfig(Config):
    """The finished checkpoint holds the weights of the best of several evaluations.

    Attributes:
        metric: What is measured: one of `evaluation.metrics` that needs moments or scores alone.
        sampling: Which of the row's samplings says how samples are made.
        nimg: Images between two evaluations; a multiple of train.log_nimg. The last one is at the
            end.
        num_images: Samples of an evaluation; image i has class i mod K.
        batch_size: Images a rank makes at once; changes memory, and the result by rounding.
        seed: Seed of the noise, in [0, 2^32); the row's samplings have others, so that final
            numbers are of noise that nothing was selected by.
    """

    metric: str
    sampling: str
    nimg: Count
    num_images: Annotated[int, Field(ge=2)]
    batch_size: Count
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @model_validator(mode="after")
    def _metric_is_merged_over_ranks(self) -> Self:
        able = [name for name, metric in METRICS.items() if _selects(metric)]
        if self.metric not in able:
            raise ValueError(
                f"metric: no selection by {self.metric!r}; there are {', '.join(able)}"
            )
        return self

    def num_evaluations(self, total_nimg: int) -> int:
        """Return how many evaluations a training of that many images has."""
        return -(-total_nimg // self.nimg)


def _selects(metric: Metric) -> bool:
    return metric.need is not None and metric.need.kind in _KINDS and not metric.paired
