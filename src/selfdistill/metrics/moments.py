"""Mean and covariance of features that come in batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1024  # vectors; a matrix product of fewer waits for the memory of the D x D scatter


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

    Vectors are collected into blocks, and blocks are joined by their means and scatter matrices
    (Chan, Golub and LeVeque, 1979), so that a mean far from zero costs no digits and any split of
    the data gives the same result up to rounding. All of it stays on the device of the features,
    and takes the same memory for any number of them.
    """

    def __init__(self) -> None:
        self._num = 0
        self._mu = torch.zeros((), dtype=torch.float64)
        self._scatter = torch.zeros((), dtype=torch.float64)
        self._block = torch.empty(0)  # (_BLOCK, D) once there are features
        self._filled = 0

    def update(self, features: Tensor) -> None:
        """Add a batch.

        Args:
            features: (N, D), any floating type; N = 0 is allowed.

        Raises:
            ValueError: If they are not (N, D), or not as wide as those before.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be (N, D), got {list(features.shape)}")
        if not len(features):
            return
        self._prepare(features.shape[1], features.device)
        if not len(self._block):
            self._block = features.new_empty((_BLOCK, features.shape[1]), dtype=torch.float64)
        rest = features.detach()
        while len(rest):
            taken, rest = rest.tensor_split([_BLOCK - self._filled])
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            if self._filled == _BLOCK:
                self._flush()

    def merge(self, other: Self) -> None:
        """Add all that `other` has seen, as if the batches had come here.

        Raises:
            ValueError: If its features are of another width.
        """
        self._flush()
        other._flush()
        if other._num:
            self._prepare(len(other._mu), other._mu.device)
            self._scatter += other._scatter.to(self._scatter.device)
            self._join(other._num, other._mu.to(self._mu.device))

    def finish(self) -> Moments:
        """Return the moments of everything seen, on the CPU.

        Raises:
            ValueError: If there are fewer than two feature vectors, or one is not finite.
        """
        self._flush()
        if self._num < 2:
            raise ValueError(f"a covariance needs two feature vectors or more, got {self._num}")
        mu, sigma = self._mu.cpu(), (self._scatter / (self._num - 1)).cpu()
        if not (mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError(f"the features of {self._num} images hold NaN or infinite values")
        return Moments(mu, sigma, self._num)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything seen as arrays, for `from_state`: "num", "mu" and "scatter"."""
        self._flush()
        return {
            "num": np.array(self._num),
            "mu": self._mu.cpu().numpy().copy(),
            "scatter": self._scatter.cpu().numpy().copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """Return the running moments, on the CPU, whose `state` this is."""
        running = cls()
        running._num = int(state["num"])
        running._mu = torch.tensor(state["mu"], dtype=torch.float64)
        running._scatter = torch.tensor(state["scatter"], dtype=torch.float64)
        return running

    def _prepare(self, width: int, device: torch.device) -> None:
        """Make room for features `width` wide."""
        if self._mu.ndim == 0:
            self._mu = torch.zeros(width, dtype=torch.float64, device=device)
            self._scatter = torch.zeros(width, width, dtype=torch.float64, device=device)
        elif width != len(self._mu):
            raise ValueError(f"features differ in width: {len(self._mu)} and {width}")

    def _flush(self) -> None:
        """Join what is in the block, and empty it."""
        if self._filled:
            block, self._filled = self._block[: self._filled], 0
            mu = block.mean(0)
            block -= mu
            self._mu, self._scatter = self._mu.to(mu.device), self._scatter.to(mu.device)
            self._scatter.addmm_(block.T, block)
            self._join(len(block), mu)

    def _join(self, num: int, mu: Tensor) -> None:
        """Join a set of `num` vectors about `mu`, whose own scatter has been added already."""
        total = self._num + num
        delta = mu - self._mu
        self._scatter.addr_(delta, delta, alpha=self._num * num / total)
        self._mu = self._mu + delta * (num / total)
        self._num = total
