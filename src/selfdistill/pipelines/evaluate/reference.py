"""What is known of the real images before there are samples."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from selfdistill.data.image_set import ImageSet
from selfdistill.metrics.config import needs_of
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.metric import Need
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.metrics.statistics import Arrays, Statistics
from selfdistill.metrics.subject import batches
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.pipelines.evaluate.collect import LIBRARIES, Collector
from selfdistill.pipelines.evaluate.published import ReferenceFile

logger = logging.getLogger(__name__)

BASELINES = ("noise", "real_halves")

_SEED = 0


def describe(images: ImageSet, published: Sequence[ReferenceFile], collector: Collector) -> Arrays:
    """Return the statistics of the real images that the metrics compare samples with.

    Args:
        images: Real images.
        published: Reference files. What they know is taken from them, the first that knows it:
            means and covariances, and their own images for precision and recall; the rest from
            `images`.
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
    believed = _believed(published, needs)
    known = Statistics(
        {
            need: Moments(torch.from_numpy(mu), torch.from_numpy(sigma), 0)
            for need, file in believed.items()
            for mu, sigma in [file.moments[need]]
        }
    )
    bringing = next((file for file in published if file.images is not None), None)
    gallery: ImageSet = images if bringing is None or bringing.images is None else bringing.images
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
    used = dict.fromkeys(believed.values())
    if bringing is not None and features:
        used[bringing] = None
    num = None if bringing is not None else collector.config.num_manifold_images
    chosen = _manifold(gallery, num)
    everything = range(len(images))
    if gallery is images and isinstance(chosen, range):
        made = collector.collect(images, everything, [*moments, *features])
    else:
        made = collector.collect(images, everything, moments)
        made |= collector.collect(gallery, chosen, features)
    arrays = (known | made).arrays()
    files = [(file, [need for need in known.moments if believed[need] is file]) for file in used]
    arrays["about"] = np.array(json.dumps(_about(images, files, gallery, collector)))
    if any(need.extractor == "tiny" for need in needs):
        arrays |= _tiny_baselines(images, collector.config.batch_size)
    return arrays


def about_of(reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return where the arrays that `describe` made come from."""
    about: dict[str, Any] = json.loads(str(reference["about"]))
    return about


def _about(
    images: ImageSet,
    files: Sequence[tuple[ReferenceFile, Sequence[Need]]],
    gallery: ImageSet,
    collector: Collector,
) -> dict[str, Any]:
    """Return by whom and how the statistics were made.

    Returns:
        "images" and "num_images": fingerprint and number of the real images; "published": None, or
        of the first file that was of use "file", its name if it is one that we know and else None,
        "sha256" and "believed", the taps whose moments are its own, "by_name" where its name is all
        that says which file it is, and "further", the same of the others; "manifold": which
        features precision and recall use, None if they are not wanted; "extractors" and "versions"
        as in the protocol of a result, of what was made here: nothing is known of how published
        moments were.
    """
    needs = needs_of(collector.config.metrics, of_reference=True)
    features = [need for need in needs if need.kind == "features"]
    known = {need for _, theirs in files for need in theirs}
    published = [_about_file(file, theirs) for file, theirs in files]
    if published[1:]:
        published[0]["further"] = published[1:]
    return {
        "images": images.fingerprint,
        "num_images": len(images),
        "published": published[0] if published else None,
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


def _about_file(file: ReferenceFile, believed: Sequence[Need]) -> dict[str, Any]:
    about = {
        "file": file.name,
        "sha256": file.sha256,
        "believed": sorted(need.tap for need in believed),
    }
    return {**about, "by_name": True} if file.is_known_by_name else about


def _believed(
    published: Sequence[ReferenceFile], needs: Iterable[Need]
) -> dict[Need, ReferenceFile]:
    """Return which file is believed for which of the needs: the first that knows it."""
    believed = {
        need: file
        for need in needs
        if (file := next((one for one in published if need in one.moments), None)) is not None
    }
    for file in dict.fromkeys(believed.values()):
        if file.name is None:
            logger.warning(
                "%s is none of the reference files that we know: its statistics are believed, but "
                "nobody knows of which images, features and resize they are",
                file.path,
            )
        elif file.is_known_by_name:
            logger.warning(
                "%s is taken for the published %s by its name alone; its sha256 is %s",
                file.path,
                file.name,
                file.sha256,
            )
    return believed


def _manifold(gallery: ImageSet, num: int | None) -> range | np.ndarray:
    """Choose the real images for precision and recall: all that a reference file brings."""
    if num is None or num >= len(gallery):
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
