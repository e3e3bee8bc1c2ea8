"""The numbers of some samples, with what a reader must know to repeat them."""

import logging
import statistics
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from selfdistill import __version__
from selfdistill.data.image_set import ImageSet
from selfdistill.metrics.config import METRICS, needs_of
from selfdistill.metrics.metric import Measurement
from selfdistill.metrics.statistics import Statistics
from selfdistill.metrics.subject import Subject
from selfdistill.pipelines.evaluate.checks import check_sets
from selfdistill.pipelines.evaluate.collect import LIBRARIES, Collector
from selfdistill.pipelines.evaluate.reference import BASELINES, about_of

logger = logging.getLogger(__name__)


def evaluate(
    samples: ImageSet,
    images: ImageSet,
    reference: dict[str, np.ndarray],
    repeats: int,
    collector: Collector,
) -> dict[str, Any]:
    """Return the metrics, their baselines and the protocol, as JSON values.

    Args:
        samples: Generated images.
        images: Real images.
        reference: What `reference.describe` made of them.
        repeats: Equal consecutive parts of the samples, each evaluated by itself.
        collector: What statistics are made with, and the metrics.

    Returns:
        "metrics", the mean over the repeats; "std" over them, where there are two or more, with
        divisor repeats - 1; "repeats", each one's metrics; "baselines"; "protocol". Numbers keep
        ten significant digits: what lies below depends on the number of threads.

    Raises:
        ValueError: If samples, images, reference and metrics do not fit each other.
    """
    config = collector.config
    check_sets(samples, images, config, repeats)
    _check_reference(reference, images, collector)
    num = len(samples) // repeats
    measured: list[dict[str, Measurement]] = []
    for repeat in range(repeats):
        chosen = range(repeat * num, (repeat + 1) * num)
        subject = Subject(
            sample_set=samples,
            chosen=chosen,
            image_set=images,
            samples=collector.collect(samples, chosen, needs_of(config.metrics)),
            reference=Statistics.from_arrays(reference),
            noise_and_halves={n: float(reference[n]) for n in BASELINES if n in reference},
            batch_size=config.batch_size,
            device=collector.device,
        )
        measured.append({name: METRICS[name].measure(subject) for name in config.metrics})
        _log(measured[-1], repeat, repeats)
    collector.forget()
    return {
        **_numbers(measured),
        "baselines": {
            metric: {name: _rounded(value) for name, value in one.baselines.items()}
            for metric, one in measured[0].items()
        },
        "protocol": {
            "extractors": collector.protocol(needs_of(config.metrics)),
            "quantisation": samples.about.get("quantisation", "not recorded by the sampler"),
            "num_samples": num,
            "samples_fingerprint": samples.fingerprint,
            "samples": samples.about,
            "batch_size": config.batch_size,
            "reference": about_of(reference),
            "metrics": {name: one.protocol for name, one in measured[0].items() if one.protocol},
            "versions": {
                **{name: version(name) for name in LIBRARIES},
                "selfdistill": __version__,
            },
        },
    }


def _check_reference(
    reference: dict[str, np.ndarray], images: ImageSet, collector: Collector
) -> None:
    """Refuse a reference of other images, for other metrics, or made in another way."""
    config, about = collector.config, about_of(reference)
    needs = needs_of(config.metrics, of_reference=True)
    known = Statistics.from_arrays(reference)
    again = collector.protocol([need for need in needs if need.extractor in about["extractors"]])
    made, now = (
        {name: {**how, "device": None} for name, how in protocol.items()}
        for protocol in (about["extractors"], again)
    )
    drawn, wanted = about["manifold"], config.num_manifold_images
    if about["images"] != images.fingerprint:
        fault = f"was made of other images ({about['images']}) than {images.path} holds"
    elif missing := [f"{need.tap} of {need.extractor}" for need in needs if need not in known]:
        fault = f"does not know {', '.join(missing)}, which {', '.join(config.metrics)} need"
    elif changed := [name for name in made if name in now and made[name] != now[name]]:
        fault = f"was made with other weights or another profile of {', '.join(changed)}"
    elif drawn and drawn["num_wanted"] != wanted:
        fault = f"was made with num_manifold_images {drawn['num_wanted']}, not {wanted}"
    else:
        return
    raise ValueError(f"the reference {fault}; run the node describe_reference again")


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


def _log(measured: Mapping[str, Measurement], repeat: int, repeats: int) -> None:
    numbers = ", ".join(f"{METRICS[name].label} {one.value:.6g}" for name, one in measured.items())
    prefix = f"repeat {repeat + 1} of {repeats}: " if repeats > 1 else ""
    logger.info("%s%s", prefix, numbers)


def _rounded(value: float) -> float:
    return float(f"{value:.10g}")
