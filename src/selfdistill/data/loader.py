"""Training batches as a pure function of the row's seed and the number of images seen."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from selfdistill.data.pixels import dequantise
from selfdistill.data.shards import Shards
from selfdistill.draws import Draws

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(
    read: Callable[[Key], Value], keys: Iterable[Key], device: torch.device
) -> Iterator[Value]:
    """Yield `read(key)` for each key in order; beside a GPU, one ahead in a thread.

    On a CPU a second thread would fight the first for the cores.
    """
    if device.type == "cpu":
        yield from map(read, keys)
        return
    with ThreadPoolExecutor(1) as ahead:
        pending: Future[Value] | None = None
        for key in keys:
            following = ahead.submit(read, key)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


@dataclass(frozen=True)
class Batch:
    """What a loss gets to see of some images.

    Attributes:
        images: Images in [-1, 1], (N, 3, H, W), float32.
        labels: Class indices, (N,), int64.
        features: Teacher's patch tokens of the same (flipped) images, (N, L, D), float32; None in
            a training without a teacher.
        draws: Random numbers of these images' places in the training stream.
    """

    images: Tensor
    labels: Tensor
    features: Tensor | None
    draws: Draws


@dataclass(frozen=True)
class Loader:
    """Reads, flips and moves batches; any place in the stream at any time, in any split.

    Attributes:
        images: uint8 images, (H, W, 3) each.
        features: Teacher tokens of the same images, one by one, (2, L, D) each: as it is, flipped;
            None in a training without a teacher.
        seed: The row's seed.
        flip: Whether half of the images are mirrored.
        device: Where batches go.
    """

    images: Shards
    features: Shards | None
    seed: int
    flip: bool
    device: torch.device
    _orders: "OrderedDict[int, np.ndarray]" = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        of = self.images.fingerprint
        if self.features is not None and self.features.about.get("images") != of:
            raise ValueError(
                f"{self.features.path} was made from other images than {self.images.path} holds: "
                "run the features stage again"
            )
        if len(self.images) == 0:
            raise ValueError(f"{self.images.path} holds no images")

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Return the images at places of the stream: each epoch is one permutation of all.

        Args:
            positions: Places, (N,), from 0; place // len(images) is the epoch.
        """
        epochs, offsets = np.divmod(positions, len(self.images))
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[offsets[here]]
        return indices

    def load(self, positions: np.ndarray) -> Batch:
        """Return the batch at the given places of the stream, (N,)."""
        place = torch.from_numpy(positions)
        flips = Draws(self.seed, place).bernoulli("flip", 0.5 if self.flip else 0.0).reshape(-1)
        indices = self.indices(positions)
        pixels = torch.from_numpy(self.images.read(indices))  # (N, H, W, 3)
        pixels = torch.where(flips[:, None, None, None], pixels.flip(2), pixels)
        features = None
        if self.features is not None:
            tokens = self.features.read(indices, parts=flips.numpy().astype(int))
            features = self._move(torch.from_numpy(tokens)).float()
        return Batch(
            images=dequantise(self._move(pixels)).contiguous(),
            labels=self._move(torch.from_numpy(self.images.labels[indices])),
            features=features,
            draws=Draws(self.seed, self._move(place)),
        )

    def stream(self, places: Iterator[Sequence[int] | np.ndarray]) -> Iterator[Batch]:
        """Yield the batches at `places`; beside a GPU, reading one ahead in a thread."""
        return read_ahead(self.load, map(np.asarray, places), self.device)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._orders[epoch] = generator.permutation(len(self.images))
            while len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _move(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
