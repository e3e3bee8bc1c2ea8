"""The tiny extractor: a stand-in for small data and slow machines, under its own name."""

import hashlib
import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class TinyExtractor:
    """A fixed bank of random filters: 64 features, offline, the same numbers on every machine.

    Random convolutions followed by a rectifier and pooling separate images by their texture and
    strokes although nothing was trained (Jarrett et al., 2009, "What is the best multi-stage
    architecture for object recognition?"). Enough to rank samples of a tiny dataset against noise;
    not comparable with any published number.

    The image, averaged to 32 x 32 and scaled to [-1, 1], meets 16 filters of 5 x 5 x 3 at full and
    at half resolution; each rectified map gives its mean and its standard deviation. All in float64
    on one CPU thread, so that another machine differs in the last digits at most.
    """

    num_features = 64

    def __init__(self) -> None:
        self._filters, self._bias = _random_filters(num=self.num_features // 4, size=5, seed=2015)
        weights = self._filters.tobytes() + self._bias.tobytes()
        self.weights_sha256 = hashlib.sha256(weights).hexdigest()

    def __call__(self, images: np.ndarray, taps: Collection[str]) -> "dict[str, Tensor]":
        """Return the features of a batch.

        Args:
            images: uint8, (N, H, W, 3), of any size.
            taps: "filters" alone.

        Returns:
            "filters": (N, 64), float64: for each of the two scales 16 means, then 16 standard
            deviations.

        Raises:
            ValueError: If the images are not uint8 (N, H, W, 3).
        """
        import torch

        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 (N, H, W, 3), got {images.dtype} {list(images.shape)}"
            )
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return {"filters": self._features(torch.from_numpy(images))}
        finally:
            torch.set_num_threads(num_threads)

    def _features(self, images: "Tensor") -> "Tensor":
        import torch
        from torch.nn import functional

        x = images.permute(0, 3, 1, 2).contiguous().to(torch.float64) / 127.5 - 1
        x = functional.adaptive_avg_pool2d(x, 32)  # (N, 3, 32, 32)
        filters, bias = torch.from_numpy(self._filters), torch.from_numpy(self._bias)
        features = []
        for scale in (x, functional.avg_pool2d(x, 2)):
            maps = functional.conv2d(scale, filters, bias).relu().flatten(2)  # (N, 16, L)
            features += [maps.mean(2), maps.std(2)]
        return torch.cat(features, 1)  # (N, 64)


def _random_filters(*, num: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return zero-mean filters, (num, 3, size, size), of norm about 10, and biases, (num,).

    They are made of raw PCG64 bits, the one random stream that NumPy promises never to change, and
    centred with exact sums, so that their sha256 is the same on every machine.
    """
    fan_in = 3 * size * size
    bits = np.random.PCG64(seed).random_raw(num * (fan_in + 1))
    uniform = (bits >> np.uint64(11)) * 2.0**-53 * 2 - 1  # [-1, 1)
    filters = uniform[num:].reshape(num, fan_in)
    means = np.array([math.fsum(filter_) / fan_in for filter_ in filters])
    filters = (filters - means[:, None]) * 2  # 75 uniform numbers have a norm of about 5
    return filters.reshape(num, 3, size, size).astype("<f8"), (uniform[:num] * 5).astype("<f8")
