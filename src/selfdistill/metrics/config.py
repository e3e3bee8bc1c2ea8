"""What to measure, and with which extractor. Imports no torch: every command reads this."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from selfdistill.base_config import Config

ExtractorName = Literal["inception_2015", "tiny"]

# A metric belongs to the extractor that defines it: the same formula on other features is another
# number and has another name.
METRICS_OF: dict[ExtractorName, tuple[str, ...]] = {
    "inception_2015": ("fid", "sfid", "inception_score", "precision", "recall"),
    "tiny": ("fd_tiny", "class_accuracy"),
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
        known = METRICS_OF[self.extractor]
        if foreign := [name for name in self.metrics if name not in known]:
            raise ValueError(
                f"metrics {foreign} do not belong to the extractor {self.extractor!r}, "
                f"whose metrics are {list(known)}"
            )
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"a metric is named twice in {list(self.metrics)}")
        return self
