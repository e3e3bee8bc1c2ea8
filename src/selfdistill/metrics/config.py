"""The metrics by name, and what to measure. Imports no torch: every command reads this."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from selfdistill.base_config import Config
from selfdistill.metrics import class_accuracy, frechet
from selfdistill.metrics.metric import ExtractorName, Metric

# The metrics of ADM's evaluation suite, in which papers give their numbers.
AdmMetric = Literal["fid", "sfid", "inception_score", "precision", "recall"]

METRICS: dict[str, Metric] = {  # in the order of a table's columns
    "fid": Metric("FID", "inception_2015", "lower", ".2f", frechet.measure),
    "sfid": Metric("sFID", "inception_2015", "lower", ".2f"),
    "inception_score": Metric("IS", "inception_2015", "higher", ".1f"),
    "precision": Metric("Precision", "inception_2015", "higher", ".3f"),
    "recall": Metric("Recall", "inception_2015", "higher", ".3f"),
    "fd_tiny": Metric("fd_tiny", "tiny", "lower", ".4g", frechet.measure),
    "class_accuracy": Metric("class_accuracy", "tiny", "higher", ".3f", class_accuracy.measure),
}


class EvaluationConfig(Config):
    """The extractor and the metrics of an evaluation.

    Attributes:
        extractor: Network or filter bank that turns images into features.
        metrics: Names of the metrics, each once, all of them the extractor's own.
        batch_size: Images per forward pass of the extractor; changes no result but rounding.
    """

    extractor: ExtractorName
    metrics: tuple[str, ...] = Field(min_length=1)
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _metrics_belong_to_the_extractor(self) -> Self:
        known = [name for name, metric in METRICS.items() if metric.extractor == self.extractor]
        if foreign := [name for name in self.metrics if name not in known]:
            raise ValueError(
                f"metrics {foreign} do not belong to the extractor {self.extractor!r}, "
                f"whose metrics are {known}"
            )
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"a metric is named twice in {list(self.metrics)}")
        return self
