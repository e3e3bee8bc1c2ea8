"""The Inception Score of images whose class logits come in batches.

"Improved Techniques for Training GANs", Salimans et al., 2016, arXiv:1606.03498v1, Section 4, over
the splits of ADM's evaluator (Dhariwal and Nichol, 2021, arXiv:2105.05233).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

SPLIT_SIZE = 5000  # ADM's evaluator


@dataclass
class _Split:
    """Sums over the images of one split seen so far, in float64.

    Attributes:
        num: Number of images.
        p: Sum of their class probabilities, (K,).
        p_log_p: Sum of Σ_k p log p, ().
    """

    num: int
    p: Tensor
    p_log_p: Tensor

    def add(self, other: "_Split") -> None:
        self.num += other.num
        self.p = self.p + other.p.to(self.p.device)
        self.p_log_p = self.p_log_p + other.p_log_p.to(self.p.device)

    def score(self) -> float:
        """Return exp(mean_i KL(p_i || mean p)).

        mean_i KL(p_i || m) = mean_i Σ_k p_ik log p_ik - Σ_k m_k log m_k with m = mean_i p_i, which
        needs sums only.
        """
        m = self.p / self.num
        return math.exp(float(self.p_log_p / self.num - torch.xlogy(m, m).sum()))


class RunningInceptionScore:
    """The Inception Score of images that come in any order, each with its place among all.

    IS = exp(E_x KL(p(y|x) || p(y)))    (Section 4)

    ADM's evaluator takes it of consecutive splits, unshuffled, the last of which may be short, and
    then the mean over the splits. A probability that underflows counts as the 0 that it is, where
    ADM's arithmetic makes the score NaN.

    Args:
        split_size: Images per split.
    """

    def __init__(self, split_size: int = SPLIT_SIZE) -> None:
        if split_size < 1:
            raise ValueError(f"a split has one image or more, got split_size = {split_size}")
        self._split_size = split_size
        self._splits: dict[int, _Split] = {}

    def update(self, logits: Tensor, start: int) -> None:
        """Add a batch.

        Args:
            logits: (N, K), any floating type; N = 0 is allowed.
            start: Place of the first of them among all images.

        Raises:
            ValueError: If they are not (N, K), not as many classes as before, or `start` is
                negative.
        """
        if logits.ndim != 2 or not logits.shape[1] or start < 0:
            raise ValueError(f"logits must be (N, K), got {list(logits.shape)} at image {start}")
        log_p = logits.detach().double().log_softmax(1)  # finite also where p underflows to 0
        while len(log_p):
            index, within = divmod(start, self._split_size)
            taken, log_p = log_p.tensor_split([self._split_size - within])
            p = taken.exp()
            self._add(index, _Split(len(taken), p.sum(0), (p * taken).sum()))
            start += len(taken)

    def merge(self, other: Self) -> None:
        """Add all that `other` has seen, as if the batches had come here.

        Raises:
            ValueError: If its splits or its classes are not as many.
        """
        if other._split_size != self._split_size:
            raise ValueError(f"splits of {self._split_size} and of {other._split_size} images")
        for index, split in other._splits.items():
            self._add(index, split)

    def finish(self) -> float:
        """Return the mean over the splits.

        Raises:
            ValueError: If there are no images, an image is missing or came twice, or a logit is
                not finite.
        """
        if not self._splits:
            raise ValueError("an Inception Score needs one image or more, got none")
        last = max(self._splits)
        for index in range(last + 1):
            num = self._splits[index].num if index in self._splits else 0
            if num > self._split_size or (num < self._split_size and index < last):
                raise ValueError(
                    f"split {index} of {last + 1} has {num} images instead of {self._split_size}: "
                    "some are missing, or came twice"
                )
        scores = [self._splits[index].score() for index in range(last + 1)]
        if not all(map(math.isfinite, scores)):
            num = sum(split.num for split in self._splits.values())
            raise ValueError(f"the logits of {num} images hold NaN or infinite values")
        return math.fsum(scores) / len(scores)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything seen as arrays, for `from_state`.

        They are "split_size", and of the S splits that have images: "index" (S,), "num" (S,), "p"
        (S, K) and "p_log_p" (S,).
        """
        splits = dict(sorted(self._splits.items()))
        p = [split.p.cpu().numpy() for split in splits.values()]
        return {
            "split_size": np.array(self._split_size),
            "index": np.array([*splits], dtype=np.int64),
            "num": np.array([split.num for split in splits.values()], dtype=np.int64),
            "p": np.stack(p) if p else np.zeros((0, 0)),
            "p_log_p": np.array([float(split.p_log_p) for split in splits.values()]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """Return the running score, on the CPU, whose `state` this is."""
        running = cls(int(state["split_size"]))
        parts = (state[name].tolist() for name in ("index", "num", "p_log_p"))
        for index, num, p_log_p, p in zip(*parts, state["p"], strict=True):
            running._splits[index] = _Split(
                num, torch.tensor(p), torch.tensor(p_log_p, dtype=torch.float64)
            )
        return running

    def _add(self, index: int, split: _Split) -> None:
        for known in self._splits.values():
            if len(known.p) != len(split.p):
                raise ValueError(f"logits of {len(known.p)} and of {len(split.p)} classes")
        nothing = _Split(0, torch.zeros_like(split.p), torch.zeros_like(split.p_log_p))
        self._splits.setdefault(index, nothing).add(split)
