"""Samples and the real images they are measured by; no set of images is held in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from selfdistill.data.shards import Shards
from selfdistill.metrics.extractors import Extractor
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments

_SEED = 0


def describe(images: Shards, extractor: Extractor, batch_size: int) -> dict[str, np.ndarray]:
    """Return what is known of the real images before there are samples.

    Args:
        images: Real images, uint8 rows (H, W, 3), four or more.
        extractor: Images to features.
        batch_size: Images per call of the extractor.

    Returns:
        "mu" (D,) and "sigma" (D, D) of the features, in float64, and scalars: "num_images",
        "fingerprint" of the images, "extractor" and its "weights_sha256", and the Fréchet distances
        "frechet_noise" (as many images of pure noise) and "frechet_real_halves" (one half of the
        real images from the other).
    """
    order = np.random.default_rng(_SEED).permutation(len(images))
    halves = [
        _running(extractor, batches(images, batch_size, np.sort(half)))
        for half in np.array_split(order, 2)
    ]
    between_halves = frechet_distance(halves[0].finish(), halves[1].finish())
    halves[0].merge(halves[1])
    real = halves[0].finish()
    noise = _running(extractor, _noise(len(images), images.shape, batch_size)).finish()
    return {
        "mu": real.mu.numpy(),
        "sigma": real.sigma.numpy(),
        "num_images": np.array(real.num),
        "fingerprint": np.array(images.fingerprint),
        "extractor": np.array(extractor.name),
        "weights_sha256": np.array(extractor.weights_sha256),
        "frechet_noise": np.array(frechet_distance(noise, real)),
        "frechet_real_halves": np.array(between_halves),
    }


@dataclass(frozen=True)
class Subject:
    """What is measured, against what, and with what; features are computed once, when needed.

    Attributes:
        samples: Generated images, uint8 rows (H, W, 3).
        images: Real images, uint8 rows (H, W, 3).
        reference: What `describe` made of `images`.
        extractor: Images to features.
        batch_size: Images per call of the extractor.
    """

    samples: Shards
    images: Shards
    reference: dict[str, np.ndarray]
    extractor: Extractor
    batch_size: int

    def __post_init__(self) -> None:
        made_of, made_by = str(self.reference["fingerprint"]), str(self.reference["weights_sha256"])
        if made_of != self.images.fingerprint or made_by != self.extractor.weights_sha256:
            raise ValueError(
                "the reference was made of other images or by another extractor "
                f"(images {made_of}, weights {made_by[:8]}; expected {self.images.fingerprint}, "
                f"{self.extractor.weights_sha256[:8]}); run the node describe_reference again"
            )
        if self.samples.shape != self.images.shape:
            raise ValueError(
                f"{self.samples.path}: samples are {list(self.samples.shape)}, "
                f"the real images {list(self.images.shape)}"
            )

    @cached_property
    def moments(self) -> Moments:
        """Moments of the samples' features."""
        return _running(self.extractor, batches(self.samples, self.batch_size)).finish()

    @cached_property
    def reference_moments(self) -> Moments:
        """Moments of the real images' features."""
        mu, sigma = (torch.from_numpy(self.reference[name]) for name in ("mu", "sigma"))
        return Moments(mu, sigma, int(self.reference["num_images"]))


def batches(
    images: Shards, batch_size: int, indices: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield uint8 batches (n, H, W, 3) of the rows at `indices`, of all rows without it."""
    wanted = np.arange(len(images)) if indices is None else indices
    for start in range(0, len(wanted), batch_size):
        yield images.read(wanted[start : start + batch_size])


def _noise(num: int, shape: tuple[int, ...], batch_size: int) -> Iterator[np.ndarray]:
    """Yield what a sampler makes of untouched noise: clip(N(0, 1), -1, 1) as uint8 (n, H, W, 3)."""
    rng = np.random.default_rng(_SEED)
    for start in range(0, num, batch_size):
        eps = rng.standard_normal((min(batch_size, num - start), *shape))
        yield np.clip(127.5 * np.clip(eps, -1, 1) + 128, 0, 255).astype(np.uint8)


def _running(extractor: Extractor, images: Iterable[np.ndarray]) -> RunningMoments:
    running = RunningMoments()
    for batch in images:
        running.update(extractor(batch))
    return running
