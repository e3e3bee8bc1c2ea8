"""Nodes of the evaluate stage."""

import logging
from typing import TYPE_CHECKING, Any

from selfdistill.metrics.config import EvaluationConfig

if TYPE_CHECKING:
    from selfdistill.data.shards import Shards
else:  # Kedro resolves all hints of a node; if one fails it skips the validation of the parameters
    Shards = Any

logger = logging.getLogger(__name__)


def describe_reference(images: Shards, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Measure the real images: what samples are compared with, and the baselines.

    Args:
        images: Real images, uint8 rows (H, W, 3).
        evaluation: The extractor to use.

    Returns:
        NumPy arrays by name, as `metrics.subject.describe` lists them.

    Raises:
        ValueError: If the extractor is not part of this version.
    """
    from selfdistill.metrics.extractors import build_extractor
    from selfdistill.metrics.subject import describe

    return describe(images, build_extractor(evaluation), evaluation.batch_size)


def evaluate_samples(
    samples: Shards, images: Shards, reference: dict[str, Any], evaluation: EvaluationConfig
) -> dict[str, Any]:
    """Compare generated images with real ones.

    Args:
        samples: Generated images, uint8 rows (H, W, 3), with the classes they were asked for.
        images: Real images, uint8 rows (H, W, 3).
        reference: What `describe_reference` made of `images`.
        evaluation: The extractor and the metrics.

    Returns:
        JSON values: {"metrics": {metric: number}, "baselines": {metric: {name: number}},
        "protocol": {...}}.

    Raises:
        ValueError: If the extractor is not part of this version, or if the reference was made of
            other images or by another extractor, or the images differ in size.
    """
    from selfdistill.metrics.extractors import build_extractor
    from selfdistill.metrics.subject import Subject
    from selfdistill.pipelines.evaluate.measure import evaluate

    extractor = build_extractor(evaluation)
    subject = Subject(samples, images, reference, extractor, evaluation.batch_size)
    result = evaluate(subject, evaluation.metrics)
    numbers = result["metrics"].items()
    logger.info("%s", ", ".join(f"{name} {value:.4g}" for name, value in numbers))
    return result
