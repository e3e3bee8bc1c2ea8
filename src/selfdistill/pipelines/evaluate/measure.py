"""The numbers of some samples, with what a reader must know to repeat them."""

import logging
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill import __version__
from selfdistill.data.image_set import ImageSet
from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.config import METRICS, EvaluationConfig, needs_of
from selfdistill.metrics.definitions import DEFINITIONS, accepted_sha256
from selfdistill.metrics.metric import Measurement
from selfdistill.metrics.statistics import Statistics
from selfdistill.metrics.subject import Subject
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.pipelines.evaluate.collect import collect, forget

logger = logging.getLogger(__name__)

_VERSIONS = ("torch", "numpy", "scipy", "scikit-learn", "timm", "pillow", "clean-fid")


def evaluate(
    samples: ImageSet,
    images: ImageSet,
    reference: Mapping[str, np.ndarray],
    config: EvaluationConfig,
    repeats: int,
    weights: Mapping[str, Path],
    distributed: DistributedConfig,
    scratch: Path,
) -> dict[str, Any]:
    """Return the metrics, their baselines and the protocol, as JSON values.

    Args:
        samples: Generated images.
        images: Real images.
        reference: What `reference.describe` made of them.
        config: The metrics, and how.
        repeats: Equal consecutive parts of the samples, each evaluated by itself.
        weights: Files of the extractors' weights, by name.
        distributed: The machine.
        scratch: Where unfinished work is kept.

    Returns:
        "metrics", the mean over the repeats; "std" over them, where there are two or more, with
        divisor repeats - 1; "repeats", each one's metrics; "baselines"; "protocol". Numbers keep
        ten significant digits: what lies below depends on the number of threads.

    Raises:
        ValueError: If samples, images, reference and metrics do not fit each other.
    """
    _check(samples, images, reference, config, repeats)
    num = len(samples) // repeats
    measured: list[dict[str, Measurement]] = []
    for repeat in range(repeats):
        chosen = range(repeat * num, (repeat + 1) * num)
        subject = Subject(
            sample_set=samples,
            chosen=chosen,
            image_set=images,
            samples=collect(
                samples, chosen, needs_of(config.metrics), config, weights, distributed, scratch
            ),
            reference=Statistics.from_arrays(reference),
            noise_and_halves={
                name: float(reference[name]) for name in _BASELINES if name in reference
            },
            batch_size=config.batch_size,
        )
        measured.append({name: METRICS[name].measure(subject) for name in config.metrics})
        _log(measured[-1], repeat, repeats)
    forget(scratch)
    return {
        **_numbers(measured),
        "baselines": {
            metric: {name: _rounded(value) for name, value in one.baselines.items()}
            for metric, one in measured[0].items()
        },
        "protocol": _protocol(samples, images, reference, config, num, weights, measured[0]),
    }


_BASELINES = ("noise", "real_halves")


def _check(
    samples: ImageSet,
    images: ImageSet,
    reference: Mapping[str, np.ndarray],
    config: EvaluationConfig,
    repeats: int,
) -> None:
    if str(reference["images"]) != images.fingerprint:
        raise ValueError(
            f"the reference was made of other images ({reference['images']}) than {images.path} "
            f"({images.fingerprint}); run the node describe_reference again"
        )
    known = Statistics.from_arrays(reference)
    needs = needs_of(config.metrics, of_reference=True)
    if missing := [f"{need.tap} of {need.extractor}" for need in needs if need not in known]:
        raise ValueError(
            f"the reference does not know {', '.join(missing)}, which "
            f"{', '.join(config.metrics)} need; run the node describe_reference again"
        )
    if len(images) and samples.shape != images.shape:
        raise ValueError(
            f"{samples.path}: samples are {list(samples.shape)}, the real images "
            f"{list(images.shape)}"
        )
    if len(samples) % repeats or len(samples) // repeats < 2:
        raise ValueError(
            f"{samples.path}: {len(samples)} samples do not divide into {repeats} repeats of two "
            "or more"
        )
    paired = [name for name in config.metrics if METRICS[name].paired]
    if paired and (repeats > 1 or len(samples) != len(images)):
        raise ValueError(
            f"{samples.path}: {', '.join(paired)} need one sample for each image, in their order; "
            f"there are {len(samples)} samples and {len(images)} images"
        )


def _numbers(measured: list[dict[str, Measurement]]) -> dict[str, Any]:
    """Return mean, and where there are repeats, standard deviation and each one's metrics."""
    values = {name: [one[name].value for one in measured] for name in measured[0]}
    means = {name: _rounded(statistics.fmean(numbers)) for name, numbers in values.items()}
    if len(measured) == 1:
        return {"metrics": means}
    return {
        "metrics": means,
        "std": {name: _rounded(statistics.stdev(numbers)) for name, numbers in values.items()},
        "repeats": {name: [*map(_rounded, numbers)] for name, numbers in values.items()},
    }


def _protocol(
    samples: ImageSet,
    images: ImageSet,
    reference: Mapping[str, np.ndarray],
    config: EvaluationConfig,
    num_samples: int,
    weights: Mapping[str, Path],
    measured: Mapping[str, Measurement],
) -> dict[str, Any]:
    extractors = sorted({need.extractor for need in needs_of(config.metrics)})
    return {
        "extractors": {
            name: {
                "weights_sha256": accepted_sha256(name, weights) or TinyExtractor().weights_sha256,
                "resize": DEFINITIONS[name].resize,
                "profile": config.profile,
            }
            for name in extractors
        },
        "quantisation": samples.about.get("quantisation", "not recorded by the sampler"),
        "num_samples": num_samples,
        "num_reference": len(images),
        "reference": images.fingerprint,
        "published_reference": str(reference["published"]) or None,
        "samples_fingerprint": samples.fingerprint,
        "samples": samples.about,
        "batch_size": config.batch_size,
        "metrics": {name: one.protocol for name, one in measured.items() if one.protocol},
        "versions": {**{name: version(name) for name in _VERSIONS}, "selfdistill": __version__},
    }


def _log(measured: Mapping[str, Measurement], repeat: int, repeats: int) -> None:
    numbers = ", ".join(f"{METRICS[name].label} {one.value:.6g}" for name, one in measured.items())
    prefix = f"repeat {repeat + 1} of {repeats}: " if repeats > 1 else ""
    logger.info("%s%s", prefix, numbers)


def _rounded(value: float) -> float:
    return float(f"{value:.10g}")
