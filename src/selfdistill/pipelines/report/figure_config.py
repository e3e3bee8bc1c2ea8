"""Figures that set one metric of many samplings over what they differ in."""

from pydantic import Field, field_validator

from selfdistill.base_config import Config
from selfdistill.metrics.config import METRICS


class FigureConfig(Config):
    """Lines through samplings of rows.

    Attributes:
        metric: Name of the metric.
        x: What they are set over: "nfe", the network's evaluations a sample, or the dotted path of
            a number in the row's parameters, such as train.total_nimg.
        log: Whether both axes are logarithmic.
        lines: By caption, the samplings as <row>.<sampling>.
        levels: By caption, one sampling that has no x, such as the base that others start from.
    """

    metric: str
    x: str
    log: bool
    lines: dict[str, list[str]] = Field(min_length=1)
    levels: dict[str, str] = {}

    @property
    def samplings(self) -> list[str]:
        """All that is shown, each once."""
        drawn = [one for line in self.lines.values() for one in line]
        return list(dict.fromkeys([*drawn, *self.levels.values()]))

    @property
    def rows(self) -> list[str]:
        """Whose samplings they are, each once."""
        return list(dict.fromkeys(one.partition(".")[0] for one in self.samplings))

    @field_validator("metric")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"no metric {value!r}; there are {', '.join(METRICS)}")
        return value
