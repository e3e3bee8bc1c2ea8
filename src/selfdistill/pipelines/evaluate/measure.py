"""A subject's numbers, with what a reader must know to repeat them."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from selfdistill import __version__
from selfdistill.metrics.config import METRICS
from selfdistill.metrics.metric import Measurement
from selfdistill.metrics.subject import Subject


def evaluate(subject: Subject, metrics: Iterable[str]) -> dict[str, Any]:
    """Return the metrics, their baselines and the protocol, as JSON values.

    Numbers keep ten significant digits: what lies below depends on the number of threads.
    """
    measured = {name: _measure(name, subject) for name in metrics}
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
    return {
        "metrics": {name: _rounded(one.value) for name, one in measured.items()},
        "baselines": {
            metric: {name: _rounded(value) for name, value in one.baselines.items()}
            for metric, one in measured.items()
        },
        "protocol": protocol,
    }


def _measure(name: str, subject: Subject) -> Measurement:
    measure = METRICS[name].measure
    assert measure is not None  # check_evaluation has refused it
    return measure(subject)


def _rounded(value: float) -> float:
    return float(f"{value:.10g}")
