"""Mean and covariance of features that come in batches."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features, all in float64.

    Attributes:
        mu: Mean, (D,).
        sigma: Covariance with divisor num - 1, (D, D).
        num: Number of feature vectors.
    """

    mu: Tensor
    sigma: Tensor
    num: int


class RunningMoments:
    """Mean and covariance of features that come in batches, in one pass, in float64.

    Batches are joined by their means and scatter matrices (Chan, Golub and LeVeque, 1979), so that
    a mean far from zero costs no digits and any split of the data gives the same result.
    """

    def __init__(self) -> None:
        self._num = 0
        self._mu = torch.zeros(())
        self._scatter = torch.zeros(())

    def update(self, features: Tensor) -> None:
        """Add a batch.

        Args:
            features: (N, D), any floating type; N = 0 is allowed.
        """
        if len(features):
            batch = features.detach().to("cpu", torch.float64)
            mu = batch.mean(0)
            self._join(len(batch), mu, (batch - mu).T @ (batch - mu))

    def merge(self, other: Self) -> None:
        """Add all that `other` has seen, as if the batches had come here."""
        if other._num:
            self._join(other._num, other._mu, other._scatter)

    def finish(self) -> Moments:
        """Return the moments of everything seen.

        Raises:
            ValueError: If there are fewer than two feature vectors, or one is not finite.
        """
        if self._num < 2:
            raise ValueError(f"a covariance needs two feature vectors or more, got {self._num}")
        sigma = self._scatter / (self._num - 1)
        if not (self._mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError(f"the features of {self._num} images hold NaN or infinite values")
        return Moments(self._mu, sigma, self._num)

    def _join(self, num: int, mu: Tensor, scatter: Tensor) -> None:
        if not self._num:
            self._num, self._mu, self._scatter = num, mu, scatter
            return
        total = self._num + num
        delta = mu - self._mu
        self._scatter = self._scatter + scatter + delta.outer(delta) * (self._num * num / total)
        self._mu = self._mu + delta * (num / total)
        self._num = total
