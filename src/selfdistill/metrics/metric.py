"""What a metric is, and what measuring it gives. Every command reads this: nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from selfdistill.metrics.subject import Subject

ExtractorName = Literal[
    "inception_2015", "dinov2", "dinov2_pil", "clean", "legacy_tensorflow", "tiny"
]


class Need(NamedTuple):
    """Something that a metric needs to know of a set of images.

    Attributes:
        extractor: The network whose features it is about.
        tap: Which of the network's outputs.
        kind: "moments": mean and covariance; "own_moments": the same, of the images themselves
            even where a published file knows those of a larger set; "scores": the Inception Score
            of class logits; "features": the feature vectors, the only kind that grows with the set.
    """

    extractor: ExtractorName
    tap: str
    kind: Literal["moments", "own_moments", "scores", "features"]


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
        better: Which numbers are better.
        digits: Format of its numbers, as the field prints them.
        measure: Takes the number.
        need: What it needs to know of the samples, and of the real images unless it says
            otherwise; None: it looks at the pixels. The extractor defines the metric: the same
            formula on other features is another number and has another name.
        alone: Whether it needs the samples only.
        paired: Whether sample i must be the image i, seen by an autoencoder.
    """

    label: str
    better: Literal["lower", "higher"]
    digits: str
    measure: "Callable[[Subject], Measurement]"
    need: Need | None = None
    alone: bool = False
    paired: bool = False
