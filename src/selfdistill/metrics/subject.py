"""Samples and the real images they are measured by; no set of images is held in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from selfdistill.data.image_set import ImageSet
from selfdistill.metrics.measures import Arithmetic
from selfdistill.metrics.metric import Need
from selfdistill.metrics.precision_recall import precision_recall
from selfdistill.metrics.statistics import Statistics

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """What is measured, and against what.

    Attributes:
        sample_set: Generated images.
        chosen: Which of them are measured.
        image_set: Real images.
        samples: Statistics of the chosen samples.
        reference: Statistics of the real images.
        noise_and_halves: Baselines of the tiny extractor's distance, by name.
        batch_size: Images read at once.
        device: Where distances between features are computed.
    """

    sample_set: ImageSet
    chosen: Sequence[int]
    image_set: ImageSet
    samples: Statistics
    reference: Statistics
    noise_and_halves: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 64
    device: torch.device = _CPU
    _manifolds: dict[tuple[Need, Arithmetic], tuple[float, float]] = field(
        default_factory=dict, repr=False
    )

    def manifold(self, need: Need, arithmetic: Arithmetic) -> tuple[float, float]:
        """Return precision and recall; they come together and are computed once."""
        if (need, arithmetic) not in self._manifolds:
            reference, samples = (
                features[need].to(self.device)
                for features in (self.reference.features, self.samples.features)
            )
            self._manifolds[need, arithmetic] = precision_recall(
                reference, samples, arithmetic=arithmetic
            )
        return self._manifolds[need, arithmetic]

    def baselines(self, need: Need) -> dict[str, float]:
        """Return what to read a Fréchet distance by, where somebody has measured it."""
        return dict(self.noise_and_halves) if need.extractor == "tiny" else {}

    def sample_batches(self) -> Iterator[np.ndarray]:
        """Yield the chosen samples, uint8 (n, H, W, 3)."""
        return batches(self.sample_set, self.chosen, self.batch_size)

    def image_batches(self) -> Iterator[np.ndarray]:
        """Yield the real images, uint8 (n, H, W, 3)."""
        return batches(self.image_set, range(len(self.image_set)), self.batch_size)


def batches(
    images: ImageSet, chosen: Sequence[int] | np.ndarray, size: int
) -> Iterator[np.ndarray]:
    """Yield the chosen images, uint8 (n, H, W, 3), up to `size` at a time."""
    for start in range(0, len(chosen), size):
        yield images.read(np.asarray(chosen[start : start + size]))
