"""What is known of the real images before there are samples."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from selfdistill.data.image_set import ImageSet
from selfdistill.data.npz_images import NpzImages
from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.config import EvaluationConfig, needs_of
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.metric import Need
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.metrics.statistics import Arrays, Statistics
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.pipelines.evaluate.collect import collect

_SEED = 0
# What ADM's reference files bring, by the names of their arrays.
_PUBLISHED = {
    Need("inception_2015", "pool_3", "moments"): ("mu", "sigma"),
    Need("inception_2015", "spatial", "moments"): ("mu_s", "sigma_s"),
}


def describe(
    images: ImageSet,
    published: NpzImages | None,
    config: EvaluationConfig,
    weights: Mapping[str, Path],
    distributed: DistributedConfig,
    scratch: Path,
) -> Arrays:
    """Return the statistics of the real images that the metrics compare samples with.

    Args:
        images: Real images.
        published: A reference file in ADM's format. What it knows is taken from it: means and
            covariances, and its own images for precision and recall; the rest from `images`.
        config: The metrics, and how.
        weights: Files of the extractors' weights, by name.
        distributed: The machine.
        scratch: Where unfinished work is kept.

    Returns:
        Arrays for an npz: the statistics; "images" and "published", the fingerprints of what they
        were made of; for the tiny extractor the distances "noise" (of as many images of pure noise
        from the real ones) and "real_halves" (of one half of the real images from the other).

    Raises:
        ValueError: If a needed number of images is not there, or as `collect` does.
    """
    needs = needs_of(config.metrics, of_reference=True)
    known = _of(published) if published else Statistics()
    missing = [need for need in needs if need not in known]
    machine = (config, weights, distributed, scratch)
    moments = [need for need in missing if need.kind == "moments"]
    features = [need for need in missing if need.kind == "features"]
    if moments and not len(images):
        raise ValueError(
            f"{images.path} holds no images to take {', '.join(n.tap for n in moments)} of"
        )
    known |= collect(images, range(len(images)), moments, *machine)
    gallery = published if published and len(published) else images
    if features and not len(gallery):
        raise ValueError(f"{images.path} holds no images, which precision and recall need")
    known |= collect(gallery, _manifold(gallery, published, config), features, *machine)
    wanted = Statistics(
        {need: value for need, value in known.moments.items() if need in needs},
        features=known.features,
    )
    arrays = {
        **wanted.arrays(),
        "images": np.array(images.fingerprint),
        "published": np.array(published.fingerprint if published else ""),
    }
    if any(need.extractor == "tiny" for need in needs):
        arrays |= _tiny_baselines(images, config.batch_size)
    return arrays


def _of(published: NpzImages) -> Statistics:
    """Return what a reference file knows; it does not say of how many images."""
    arrays = published.statistics() or {}
    return Statistics(
        {
            need: Moments(torch.from_numpy(arrays[mu]), torch.from_numpy(arrays[sigma]), 0)
            for need, (mu, sigma) in _PUBLISHED.items()
            if mu in arrays
        }
    )


def _manifold(
    gallery: ImageSet, published: NpzImages | None, config: EvaluationConfig
) -> range | np.ndarray:
    """Choose the real images for precision and recall: all that a reference file brings."""
    num = config.num_manifold_images
    if gallery is published or num is None or num >= len(gallery):
        return range(len(gallery))
    return np.sort(np.random.default_rng(_SEED).permutation(len(gallery))[:num])


def _tiny_baselines(images: ImageSet, batch_size: int) -> Arrays:
    order = np.random.default_rng(_SEED).permutation(len(images))
    halves = [_tiny_moments(_read(images, half, batch_size)) for half in np.array_split(order, 2)]
    between = frechet_distance(halves[0].finish(), halves[1].finish())
    halves[0].merge(halves[1])
    noise = _tiny_moments(_noise(len(images), images.shape, batch_size))
    return {
        "noise": np.array(frechet_distance(noise.finish(), halves[0].finish())),
        "real_halves": np.array(between),
    }


def _tiny_moments(batches: Iterator[np.ndarray]) -> RunningMoments:
    extractor, running = TinyExtractor(), RunningMoments()
    for batch in batches:
        running.update(extractor(batch, ("filters",))["filters"])
    return running


def _read(images: ImageSet, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    indices = np.sort(indices)
    for start in range(0, len(indices), batch_size):
        yield images.read(indices[start : start + batch_size])


def _noise(num: int, shape: tuple[int, ...], batch_size: int) -> Iterator[np.ndarray]:
    """Yield what a sampler makes of untouched noise: clip(N(0, 1), -1, 1) as uint8 (n, H, W, 3)."""
    rng = np.random.default_rng(_SEED)
    for start in range(0, num, batch_size):
        eps = rng.standard_normal((min(batch_size, num - start), *shape))
        yield np.clip(127.5 * np.clip(eps, -1, 1) + 128, 0, 255).astype(np.uint8)
