"""Random numbers as a pure function of (seed, name, sample index): Philox4x32-10.

Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) turns a 128-bit
counter and a 64-bit key into 128 random bits with no state. Here the counter holds the index of a
sample and the number of the block drawn for it, the key holds the seed and the name of what is
drawn. So a sample's noise, time and label drop do not depend on the batch it lies in, on the rank
that computes it or on what was drawn before: world size, micro-batches and resumption change
nothing. The integers are the same bits on every device; normals agree to the last few ulp, as far
as the device's log and cosine do.
"""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return four words of random bits for each counter.

    Args:
        counter: Four int64 tensors of one shape, each word in [0, 2^32).
        key: Two words in [0, 2^32).

    Returns:
        Four int64 tensors, each word in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products wrap around in int64; shift and mask still read the right bits.
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of samples.

    Attributes:
        seed: Seed of the row, in [0, 2^32).
        index: Global index of each sample, (N,), int64: its place in the training stream, or its
            number among the generated images.
    """

    seed: int
    index: Tensor

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Return U(0, 1), float32, (N, *shape); never exactly 0 or 1.

        Args:
            name: What is drawn; another name is another independent stream.
            shape: Shape of one sample's share.
        """
        size = math.prod(shape)
        words = self._words(name, size)[:, :size]
        return _cell_centres(words).reshape(-1, *shape)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Return N(0, 1), float32, (N, *shape), by Box and Muller's transform."""
        size = math.prod(shape)
        words = self._words(name, size + size % 2)
        u = _cell_centres(words)
        half = u.shape[1] // 2
        radius = (-2 * u[:, :half].log()).sqrt()
        angle = 2 * math.pi * u[:, half:]
        eps = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
        return eps[:, :size].reshape(-1, *shape)

    def bernoulli(self, name: str, probability: float, *shape: int) -> Tensor:
        """Return booleans that are true with the given probability, (N, *shape)."""
        return self.uniform(name, *shape) < probability

    def integers(self, name: str, bound: int, *shape: int) -> Tensor:
        """Return integers in [0, bound), int64, evenly drawn, (N, *shape); bound is below 2^23."""
        return (self.uniform(name, *shape).double() * bound).long()

    def seed_layers(self, name: str) -> None:
        """Seed torch's own generator, which dropout draws from, for a pass over these samples.

        What a layer draws then depends on the batch that a sample lies in, but on nothing that was
        drawn before: a training that goes on draws what it would have drawn.

        Args:
            name: Of the pass.
        """
        first = int(self.index[0]) if len(self.index) else 0
        torch.manual_seed(zlib.crc32(f"{self.seed} {name} {first}".encode()))

    def _words(self, name: str, size: int) -> Tensor:
        """Return at least `size` random words for each sample, (N, 4 * ceil(size / 4))."""
        key = (self.seed & _MASK, zlib.crc32(name.encode()))
        block = torch.arange(-(-size // 4), device=self.index.device)
        index, block = torch.broadcast_tensors(self.index[:, None], block)
        counter = (index & _MASK, index >> 32, block, torch.zeros_like(block))
        return torch.cat(philox4x32(counter, key), dim=1)


def _cell_centres(words: Tensor) -> Tensor:
    """Map words to the centres of 2^23 equal cells of (0, 1), each exact in float32."""
    return ((words >> 9).float() + 0.5) / (1 << 23)
