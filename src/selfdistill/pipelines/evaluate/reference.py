"""What is known of the real images before there are samples."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from selfdistill.data.image_set import ImageSet
from selfdistill.data.npz_images import NpzImages
from selfdistill.metrics.config import needs_of
from selfdistill.metrics.definitions import REFERENCES
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.metric import Need
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.metrics.statistics import Arrays, Statistics
from selfdistill.metrics.subject import batches
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.pipelines.evaluate.collect import LIBRARIES, Collector

logger = logging.getLogger(__name__)

BASELINES = ("noise", "real_halves")

_SEED = 0
# What ADM's reference files bring, by the names of their arrays.
_PUBLISHED = {
    Need("inception_2015", "pool_3", "moments"): ("mu", "sigma"),
    Need("inception_2015", "spatial", "moments"): ("mu_s", "sigma_s"),
}


def describe(images: ImageSet, published: NpzImages | None, collector: Collector) -> Arrays:
    """Return the statistics of the real images that the metrics compare samples with.

    Args:
        images: Real images.
        published: A reference file in ADM's format. What it knows is taken from it: means and
            covariances, and its own images for precision and recall; the rest from `images`.
        collector: What statistics are made with.

    Returns:
        Arrays for an npz: the statistics; "about", their origin as JSON (see `_about`); for the
        tiny extractor the distances "noise" (of as many images of pure noise from the real ones)
        and "real_halves" (of one half of the real images from the other).

    Raises:
        ValueError: If images are needed and there are none, the published ones have another size,
            or as `Collector.collect` does.
    """
    needs = needs_of(collector.config.metrics, of_reference=True)
    known = _believed(published, needs)
    gallery = published or images  # a file of statistics alone is as empty as None
    if len(images) and len(gallery) and gallery.shape != images.shape:
        raise ValueError(
            f"{gallery.path} holds images of {list(gallery.shape)}, {images.path} of "
            f"{list(images.shape)}: it is the reference of another dataset"
        )
    moments = [need for need in needs if need not in known and need.kind != "features"]
    features = [need for need in needs if need.kind == "features"]
    for some, wanted in ((images, moments), (gallery, features)):
        if wanted and not len(some):
            taps = ", ".join(f"{need.tap} of {need.extractor}" for need in wanted)
            raise ValueError(f"{some.path} holds no images, of which {taps} are to be taken")
    chosen = _manifold(gallery, published, collector.config.num_manifold_images)
    everything = range(len(images))
    if gallery is images and isinstance(chosen, range):
        made = collector.collect(images, everything, [*moments, *features])
    else:
        made = collector.collect(images, everything, moments)
        made |= collector.collect(gallery, chosen, features)
    arrays = (known | made).arrays()
    arrays["about"] = np.array(json.dumps(_about(images, published, known, gallery, collector)))
    if any(need.extractor == "tiny" for need in needs):
        arrays |= _tiny_baselines(images, collector.config.batch_size)
    return arrays


def about_of(reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return where the arrays that `describe` made come from."""
    about: dict[str, Any] = json.loads(str(reference["about"]))
    return about


def _about(
    images: ImageSet,
    published: NpzImages | None,
    known: Statistics,
    gallery: ImageSet,
    collector: Collector,
) -> dict[str, Any]:
    """Return by whom and how the statistics were made.

    Returns:
        "images" and "num_images": fingerprint and number of the real images; "published": None, or
        "file", its name if it is one of ADM's and else None, "sha256" and "believed", the taps
        whose moments are its own; "manifold": which features precision and recall use, None if they
        are not wanted; "extractors" and "versions" as in the protocol of a result, of what was made
        here: nothing is known of how published moments were.
    """
    needs = needs_of(collector.config.metrics, of_reference=True)
    believed = sorted(need.tap for need in known.moments)
    features = [need for need in needs if need.kind == "features"]
    file = None
    if published is not None and (believed or (features and gallery is published)):
        file = {
            "file": REFERENCES.get(published.fingerprint),
            "sha256": published.fingerprint,
            "believed": believed,
        }
    return {
        "images": images.fingerprint,
        "num_images": len(images),
        "published": file,
        "manifold": {
            "images": gallery.fingerprint,
            "num_wanted": collector.config.num_manifold_images,
            "seed": _SEED,
        }
        if features
        else None,
        "extractors": collector.protocol([need for need in needs if need not in known]),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _believed(published: NpzImages | None, needs: Iterable[Need]) -> Statistics:
    """Return what of the needs a reference file knows; it does not say of how many images."""
    arrays = {} if published is None else published.statistics() or {}
    known = Statistics(
        {
            need: Moments(torch.from_numpy(arrays[mu]), torch.from_numpy(arrays[sigma]), 0)
            for need, (mu, sigma) in _PUBLISHED.items()
            if mu in arrays and need in needs
        }
    )
    if published is not None and known.moments and published.fingerprint not in REFERENCES:
        logger.warning(
            "%s is none of ADM's reference files: its statistics are believed, but nobody knows of "
            "which images, features and resize they are",
            published.path,
        )
    return known


def _manifold(
    gallery: ImageSet, published: NpzImages | None, num: int | None
) -> range | np.ndarray:
    """Choose the real images for precision and recall: all that a reference file brings."""
    if gallery is published or num is None or num >= len(gallery):
        return range(len(gallery))
    return np.sort(np.random.default_rng(_SEED).permutation(len(gallery))[:num])


def _tiny_baselines(images: ImageSet, batch_size: int) -> Arrays:
    order = np.random.default_rng(_SEED).permutation(len(images))
    halves = [
        _tiny_moments(batches(images, np.sort(half), batch_size))
        for half in np.array_split(order, 2)
    ]
    between = frechet_distance(halves[0].finish(), halves[1].finish())
    halves[0].merge(halves[1])
    noise = _tiny_moments(_noise(len(images), images.shape, batch_size))
    distances = (frechet_distance(noise.finish(), halves[0].finish()), between)
    return {name: np.array(value) for name, value in zip(BASELINES, distances, strict=True)}


def _tiny_moments(images: Iterator[np.ndarray]) -> RunningMoments:
    extractor, running = TinyExtractor(), RunningMoments()
    for batch in images:
        running.update(extractor(batch, ("filters",))["filters"])
    return running


def _noise(num: int, shape: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yield what a sampler makes of untouched noise: clip(N(0, 1), -1, 1) as uint8 (n, H, W, 3)."""
    rng = np.random.default_rng(_SEED)
    for start in range(0, num, batch_size):
        eps = rng.standard_normal((min(batch_size, num - start), *shape))
        yield np.clip(127.5 * np.clip(eps, -1, 1) + 128, 0, 255).astype(np.uint8)
