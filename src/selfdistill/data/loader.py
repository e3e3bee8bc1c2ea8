"""Training batches as a pure function of the row's seed and the number of images seen."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.data.latents import CONVENTIONS, sample_latents
from selfdistill.data.pixels import dequantise
from selfdistill.data.shards import Shards
from selfdistill.data.tokens import unpack_int8
from selfdistill.draws import Draws

Key = TypeVar("Key")
Value = TypeVar("Value")

_AHEAD = 2  # batches that are read while one is worked on
_ORDERS_KEPT = 2  # epochs; a batch may lie across the border of two


def read_ahead(
    read: Callable[[Key], Value], keys: Iterable[Key], device: torch.device
) -> Iterator[Value]:
    """Yield `read(key)` for each key in order; beside a GPU, some ahead in a thread.

    On a CPU a second thread would fight the first for the cores.
    """
    if device.type == "cpu":
        yield from map(read, keys)
        return
    # A new thread is on GPU 0 by default, and pinned memory would open a context there.
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as ahead:
        pending: deque[Future[Value]] = deque()
        for key in keys:
            pending.append(ahead.submit(read, key))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass(frozen=True)
class Batch:
    """What a loss gets to see of some images.

    Attributes:
        images: Images in [-1, 1], (N, 3, H, W), or a VAE's latents, drawn and scaled,
            (N, C, h, w); float32.
        labels: Class indices, (N,), int64.
        features: Teacher's patch tokens of the same (flipped) images, (N, L, D), float32; None in
            a training without a teacher.
        draws: Random numbers of these images' places in the training stream.
    """

    images: Tensor
    labels: Tensor
    features: Tensor | None
    draws: Draws


class _Read(NamedTuple):
    """A batch as it is on disk, on the device or on its way there."""

    records: Tensor  # pixels (N, H, W, 3), not flipped, or moments (N, 2C, h, w) of the flipped
    tokens: Tensor | None
    labels: Tensor
    flips: Tensor
    place: Tensor
    arrival: "torch.cuda.Event | None"  # None: they are there


@dataclass(frozen=True)
class Loader:
    """Reads, flips and moves batches; any place in the stream at any time, in any split.

    Attributes:
        images: uint8 images, (H, W, 3) each, or moments of latents, (1 or 2, 2C, h, w) each: of the
            image as it is, and mirrored.
        features: Teacher tokens of the same images, one by one, (1 or 2, L, D) each likewise, in
            float16 or packed in int8; None: none, or those of `teacher`.
        teacher: Network that gives tokens (N, L, D) of uint8-valued images (N, 3, H, W), for
            features made while training; on the device.
        seed: The row's seed.
        flip: Whether half of the images are mirrored.
        device: Where batches go.
        num_threads: Threads that read; their number changes no result.
        share: Share of the images that is seen at all, evenly spaced in their order, so that all
            classes keep theirs.
    """

    images: Shards
    features: Shards | None
    seed: int
    flip: bool
    device: torch.device
    teacher: nn.Module | None = None
    num_threads: int = 1
    share: float = 1.0
    _orders: "OrderedDict[int, np.ndarray]" = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        of = self.images.fingerprint
        if self.features is not None and self.features.about.get("images") != of:
            raise ValueError(
                f"{self.features.path} was made from other images than {self.images.path} holds: "
                "run the features stage again"
            )
        if self.teacher is not None and self._holds_latents:
            raise ValueError(
                f"{self.images.path} holds latents, of which no teacher makes features: set the "
                "row's teacher to cached"
            )
        if len(self.images) == 0:
            raise ValueError(f"{self.images.path} holds no images")
        for shards in (self.features, self.images if self._holds_latents else None):
            if self.flip and shards is not None and shards.shape[0] < 2:
                raise ValueError(
                    f"{shards.path} holds nothing of mirrored images: set `mirrored` where it is "
                    "made, or flip: false in the row"
                )

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Return the images at places of the stream: each epoch is one permutation of all.

        Args:
            positions: Places, (N,), from 0; over the number of images that are seen, the epoch.
        """
        epochs, offsets = np.divmod(positions, self._num_seen)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[offsets[here]]
        return indices * len(self.images) // self._num_seen

    @property
    def _num_seen(self) -> int:
        return max(1, round(self.share * len(self.images)))

    def load(self, positions: np.ndarray) -> Batch:
        """Return the batch at the given places of the stream, (N,)."""
        return self._finish(self._read(positions))

    def stream(self, places: Iterator[Sequence[int] | np.ndarray]) -> Iterator[Batch]:
        """Yield the batches at `places`; beside a GPU, read and moved ahead in a thread."""
        yield from map(self._finish, read_ahead(self._read, map(np.asarray, places), self.device))

    def _read(self, positions: np.ndarray) -> _Read:
        """Read a batch and send it to the device."""
        place = torch.from_numpy(positions)
        flips = Draws(self.seed, place).bernoulli("flip", 0.5 if self.flip else 0.0).reshape(-1)
        indices, parts = self.indices(positions), flips.numpy().astype(int)
        records = self._records(self.images, indices, parts if self._holds_latents else None)
        tokens = None
        if self.features is not None:
            tokens = self._records(self.features, indices, parts)
        labels = torch.from_numpy(self.images.labels[indices])
        return self._send(_Read(records, tokens, labels, flips, place, None))

    def _records(self, shards: Shards, indices: np.ndarray, parts: np.ndarray | None) -> Tensor:
        """Read records, in memory that the GPU can fetch them from, if there is one."""
        shape = shards.shape if parts is None else shards.shape[1:]
        kind = torch.from_numpy(np.empty(0, shards.dtype)).dtype
        pinned = self.device.type == "cuda"
        out = torch.empty((len(indices), *shape), dtype=kind, pin_memory=pinned)
        view = out.numpy()

        def read(rows: slice) -> None:
            shards.read(indices[rows], None if parts is None else parts[rows], view[rows])

        share = -(-len(indices) // self.num_threads)
        shares = [slice(start, start + share) for start in range(0, len(indices), share)]
        list(map(read, shares) if len(shares) == 1 else self._threads.map(read, shares))
        return out

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.num_threads, "loader")

    def _send(self, read: _Read) -> _Read:
        """Start the copies to the GPU, on a stream of their own, beside what it computes."""
        if self.device.type == "cpu":
            return read
        with torch.cuda.stream(self._copies):
            return _Read(
                self._move(read.records),
                None if read.tokens is None else self._move(read.tokens),
                self._move(read.labels),
                self._move(read.flips),
                self._move(read.place),
                self._copies.record_event(),
            )

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    @cached_property
    def _copies(self) -> "torch.cuda.Stream":
        return torch.cuda.Stream(self.device)

    def _finish(self, read: _Read) -> Batch:
        """Make a batch of what was read, on the device."""
        if read.arrival is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(read.arrival)
            for tensor in (read.records, read.tokens, read.labels, read.flips, read.place):
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory is not given away before
        draws = Draws(self.seed, read.place)
        features = None if read.tokens is None else _as_float(read.tokens)
        if self._holds_latents:
            convention = CONVENTIONS[self.images.about["convention"]]
            moments = read.records.float()
            num_channels, *size = moments.shape[1:]
            eps = draws.normal("latent", num_channels // 2, *size)  # another one each epoch
            x0 = sample_latents(moments, eps, convention)
            return Batch(x0, read.labels, features, draws)
        pixels = torch.where(
            read.flips[:, None, None, None], read.records.flip(2), read.records
        )  # (N, H, W, 3)
        if self.teacher is not None:
            features = self.teacher(pixels.permute(0, 3, 1, 2).float())
        return Batch(dequantise(pixels).contiguous(), read.labels, features, draws)

    @property
    def _holds_latents(self) -> bool:
        return self.images.dtype.kind == "f"

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._orders[epoch] = generator.permutation(self._num_seen)
            while len(self._orders) > _ORDERS_KEPT:
                self._orders.popitem(last=False)
        return self._orders[epoch]


def _as_float(tokens: Tensor) -> Tensor:
    return unpack_int8(tokens) if tokens.dtype == torch.int8 else tokens.float()
