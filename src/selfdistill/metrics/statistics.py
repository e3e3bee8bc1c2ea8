"""What a set of images leaves behind for the metrics: moments, scores, features.

Running statistics come in pieces from any number of processes and are merged; finished ones are
arrays in an npz. Only "features" grow with the number of images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from selfdistill.metrics.inception_score import RunningInceptionScore
from selfdistill.metrics.metric import Need
from selfdistill.metrics.moments import Moments, RunningMoments

Arrays = dict[str, np.ndarray]

_MOMENTS = ("moments", "own_moments")


@dataclass(frozen=True)
class Statistics:
    """All that the metrics have to know of a set of images.

    Attributes:
        moments: Mean and covariance of features.
        scores: Inception Scores.
        features: Feature vectors, (N, D) each, float32, in the order of the images.
    """

    moments: Mapping[Need, Moments] = field(default_factory=dict)
    scores: Mapping[Need, float] = field(default_factory=dict)
    features: Mapping[Need, Tensor] = field(default_factory=dict)

    def __contains__(self, need: Need) -> bool:
        return need in self.moments or need in self.scores or need in self.features

    def __or__(self, other: Self) -> "Statistics":
        """Return both; where both know something, `other` is believed."""
        return Statistics(
            {**self.moments, **other.moments},
            {**self.scores, **other.scores},
            {**self.features, **other.features},
        )

    def arrays(self) -> Arrays:
        """Return everything by name, "<extractor>/<tap>/<kind>/<part>", for an npz."""
        arrays: Arrays = {}
        for need, moments in self.moments.items():
            arrays[_name(need, "mu")] = moments.mu.numpy()
            arrays[_name(need, "sigma")] = moments.sigma.numpy()
            arrays[_name(need, "num")] = np.array(moments.num)
        for need, score in self.scores.items():
            arrays[_name(need, "value")] = np.array(score)
        for need, vectors in self.features.items():
            arrays[_name(need, "vectors")] = vectors.numpy()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return what `arrays` made; other arrays among them are left alone."""
        moments, scores, features = {}, {}, {}
        for need, parts in _by_need(arrays).items():
            if need.kind in _MOMENTS:
                mu, sigma = torch.from_numpy(parts["mu"]), torch.from_numpy(parts["sigma"])
                moments[need] = Moments(mu, sigma, int(parts["num"]))
            elif need.kind == "scores":
                scores[need] = float(parts["value"])
            else:
                features[need] = torch.from_numpy(parts["vectors"])
        return cls(moments, scores, features)


class RunningStatistics:
    """Statistics of images that come in batches.

    Args:
        needs: What to keep.
    """

    def __init__(self, needs: Iterable[Need]) -> None:
        needs = sorted(set(needs))
        self._moments = {need: RunningMoments() for need in needs if need.kind in _MOMENTS}
        self._scores = {need: RunningInceptionScore() for need in needs if need.kind == "scores"}
        self._features: dict[Need, list[Tensor]] = {
            need: [] for need in needs if need.kind == "features"
        }

    def update(self, extractor: str, features: Mapping[str, Tensor], start: int) -> None:
        """Add a batch.

        Args:
            extractor: Which extractor the features come from.
            features: By tap, (N, D) each.
            start: Place of the first image among all, for the splits of the Inception Score.
        """
        for need, moments in self._moments.items():
            if need.extractor == extractor:
                moments.update(features[need.tap])
        for need, score in self._scores.items():
            if need.extractor == extractor:
                score.update(features[need.tap], start)
        for need, vectors in self._features.items():
            if need.extractor == extractor:
                vectors.append(features[need.tap].detach().float().cpu())

    def merge(self, other: Self) -> None:
        """Add all that `other`, which keeps the same needs, has seen."""
        for need, moments in other._moments.items():
            self._moments[need].merge(moments)
        for need, score in other._scores.items():
            self._scores[need].merge(score)
        for need, vectors in other._features.items():
            self._features[need] += vectors

    def state(self) -> Arrays:
        """Return what has been seen so far, as arrays for `from_state`."""
        arrays: Arrays = {}
        states = {need: moments.state() for need, moments in self._moments.items()}
        states |= {need: score.state() for need, score in self._scores.items()}
        for need, state in states.items():
            arrays |= {_name(need, part): array for part, array in state.items()}
        for need, vectors in self._features.items():
            arrays[_name(need, "vectors")] = torch.cat(vectors).numpy()
        return arrays

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return the running statistics whose `state` this is."""
        by_need = _by_need(arrays)
        running = cls(by_need)
        for need, parts in by_need.items():
            if need.kind in _MOMENTS:
                running._moments[need] = RunningMoments.from_state(parts)
            elif need.kind == "scores":
                running._scores[need] = RunningInceptionScore.from_state(parts)
            else:
                running._features[need] = [torch.from_numpy(parts["vectors"])]
        return running

    def finish(self) -> Statistics:
        """Return the statistics of everything seen.

        Raises:
            ValueError: If there are too few images, or a feature is not finite.
        """
        return Statistics(
            {need: moments.finish() for need, moments in self._moments.items()},
            {need: score.finish() for need, score in self._scores.items()},
            {need: torch.cat(vectors) for need, vectors in self._features.items()},
        )


def _name(need: Need, part: str) -> str:
    return "/".join((*need, part))


def _by_need(arrays: Mapping[str, np.ndarray]) -> dict[Need, Arrays]:
    """Sort arrays named "<extractor>/<tap>/<kind>/<part>" by what they are about."""
    found: dict[Need, Arrays] = {}
    for name, array in arrays.items():
        if name.count("/") == len(Need._fields):
            *need, part = name.split("/")
            found.setdefault(Need(*need), {})[part] = array  # type: ignore[arg-type]
    return found
