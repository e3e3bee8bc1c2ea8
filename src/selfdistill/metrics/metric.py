"""What a metric is, and what measuring it gives. Every command reads this: nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from selfdistill.metrics.subject import Subject

ExtractorName = Literal["inception_2015", "tiny"]


@dataclass(frozen=True)
class Measurement:
    """What measuring a metric gives.

    Attributes:
        value: The number.
        baselines: Numbers of the same metric to read it by, by name.
        protocol: What a reader must know to repeat it, as JSON values, beyond what holds for all.
    """

    value: float
    baselines: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """How a metric is measured and how its numbers are shown.

    Attributes:
        label: Its name in a table.
        extractor: The extractor that defines it: the same formula on other features is another
            number and has another name.
        better: Which numbers are better.
        digits: Format of its numbers, as the field prints them.
        measure: Takes the number; None: not part of this version.
    """

    label: str
    extractor: ExtractorName
    better: Literal["lower", "higher"]
    digits: str
    measure: "Callable[[Subject], Measurement] | None" = None
