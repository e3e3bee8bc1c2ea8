"""From shards to numbers: features are streamed, and no set of images is held in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from selfdistill import __version__
from selfdistill.data.shards import Shards
from selfdistill.metrics.class_accuracy import RealClassifier, thumbnails
from selfdistill.metrics.extractors import Extractor
from selfdistill.metrics.frechet import Moments, RunningMoments, frechet_distance

_SEED = 0


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
        return _moments(self.extractor, _batches(self.samples, self.batch_size))

    @cached_property
    def reference_moments(self) -> Moments:
        """Moments of the real images' features."""
        mu, sigma = (torch.from_numpy(self.reference[name]) for name in ("mu", "sigma"))
        return Moments(mu, sigma, int(self.reference["num_images"]))


@dataclass(frozen=True)
class Measurement:
    """A metric's value, the numbers to read it by, and how it was made (JSON values)."""

    value: float
    baselines: dict[str, float]
    protocol: dict[str, Any]


def describe(images: Shards, extractor: Extractor, batch_size: int) -> dict[str, np.ndarray]:
    """Return moments of the real images' features and the baselines that need no samples.

    Args:
        images: Real images, uint8 rows (H, W, 3), four or more.
        extractor: Images to features.
        batch_size: Images per call of the extractor.
    """
    order = np.random.default_rng(_SEED).permutation(len(images))
    halves = [
        _running(extractor, _batches(images, batch_size, np.sort(half)))
        for half in np.array_split(order, 2)
    ]
    between_halves = frechet_distance(halves[0].finish(), halves[1].finish())
    halves[0].merge(halves[1])
    real = halves[0].finish()
    noise = _moments(extractor, _noise(len(images), images.shape, batch_size))
    return {
        "mu": real.mu.numpy(),
        "sigma": real.sigma.numpy(),
        "num_images": np.array(real.num),
        "fingerprint": np.array(images.fingerprint),
        "extractor": np.array(extractor.name),
        "weights_sha256": np.array(extractor.weights_sha256),
        "fd_tiny_noise": np.array(frechet_distance(noise, real)),
        "fd_tiny_real_halves": np.array(between_halves),
    }


def evaluate(subject: Subject, metrics: Iterable[str]) -> dict[str, Any]:
    """Return the metrics, their baselines and the protocol, as JSON values.

    Numbers keep ten significant digits: what lies below depends on the number of threads.
    """
    measured = {name: MEASURES[name](subject) for name in metrics}
    about = subject.samples.header["about"]
    protocol = {
        "extractor": subject.extractor.name,
        "weights_sha256": subject.extractor.weights_sha256,
        "resize": subject.extractor.resize,
        "quantisation": about.get("quantisation", "not recorded by the sampler"),
        "num_samples": len(subject.samples),
        "num_reference": len(subject.images),
        "reference": subject.images.fingerprint,
        "samples": about,
        **{name: one.protocol for name, one in measured.items() if one.protocol},
        "versions": {
            **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
            "selfdistill": __version__,
        },
    }
    baselines = [pair for one in measured.values() for pair in one.baselines.items()]
    return {
        "metrics": {name: _rounded(one.value) for name, one in measured.items()},
        "baselines": {name: _rounded(value) for name, value in baselines},
        "protocol": protocol,
    }


def measure_fd_tiny(subject: Subject) -> Measurement:
    """Fréchet distance between samples and real images in the tiny extractor's features."""
    names = ("fd_tiny_noise", "fd_tiny_real_halves")
    return Measurement(
        value=frechet_distance(subject.moments, subject.reference_moments),
        baselines={name: float(subject.reference[name]) for name in names},
        protocol={},
    )


def measure_class_accuracy(subject: Subject) -> Measurement:
    """Share of samples that a classifier fitted on real images takes for their class.

    Raises:
        ValueError: If a sample has no class.
    """
    if (subject.samples.labels < 0).any():
        raise ValueError(f"{subject.samples.path}: class_accuracy needs the class of each sample")
    real = _thumbnails(subject.images, subject.batch_size)
    classifier = RealClassifier.fit(real, subject.images.labels)
    generated = _thumbnails(subject.samples, subject.batch_size)
    return Measurement(
        value=classifier.accuracy(generated, subject.samples.labels),
        baselines={"class_accuracy_real": classifier.held_out_accuracy},
        protocol=classifier.protocol(),
    )


MEASURES: dict[str, Callable[[Subject], Measurement]] = {
    "fd_tiny": measure_fd_tiny,
    "class_accuracy": measure_class_accuracy,
}


def _batches(
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


def _running(extractor: Extractor, batches: Iterable[np.ndarray]) -> RunningMoments:
    running = RunningMoments()
    for batch in batches:
        running.update(extractor(batch))
    return running


def _moments(extractor: Extractor, batches: Iterable[np.ndarray]) -> Moments:
    return _running(extractor, batches).finish()


def _thumbnails(images: Shards, batch_size: int) -> np.ndarray:
    return np.concatenate([thumbnails(batch) for batch in _batches(images, batch_size)])


def _rounded(value: float) -> float:
    return float(f"{value:.10g}")
