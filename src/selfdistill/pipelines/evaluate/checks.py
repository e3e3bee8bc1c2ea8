"""Whether samples, real images and metrics fit each other: cheap, and before anything else."""

import numpy as np

from selfdistill.data.image_set import ImageSet
from selfdistill.metrics.config import METRICS, EvaluationConfig, needs_of

_FEWEST = {"moments": 2, "own_moments": 2, "scores": 1, "features": 4}


def check_sets(samples: ImageSet, images: ImageSet, config: EvaluationConfig, repeats: int) -> None:
    """Refuse what could only fail, or mislead, after all features have been computed.

    Args:
        samples: What is judged.
        images: What it is held against; none if a reference file holds statistics alone.
        config: The metrics.
        repeats: Equal consecutive parts of the samples.

    Raises:
        ValueError: If sizes differ, the samples do not divide into the repeats or are too few, a
            metric of pairs finds none, or one of classes finds images without a class.
    """
    if len(images) and samples.shape != images.shape:
        raise ValueError(
            f"{samples.path}: samples are {list(samples.shape)}, the real images "
            f"{list(images.shape)} ({images.path})"
        )
    fewest = max([2, *(_FEWEST[need.kind] for need in needs_of(config.metrics))])
    of_reference = needs_of(config.metrics, of_reference=True)
    halved = any(need.extractor == "tiny" for need in of_reference)
    wanted = max([4 if halved else 2, *(_FEWEST[need.kind] for need in of_reference)])
    if 0 < len(images) < wanted:
        raise ValueError(
            f"{images.path}: {', '.join(config.metrics)} need {wanted} real images or more, it "
            f"holds {len(images)}"
        )
    if len(samples) % repeats or len(samples) // repeats < fewest:
        raise ValueError(
            f"{samples.path}: {len(samples)} samples do not divide into {repeats} repeats of "
            f"{fewest} or more"
        )
    paired = [name for name in config.metrics if METRICS[name].paired]
    if paired and (repeats > 1 or len(samples) != len(images)):
        raise ValueError(
            f"{samples.path}: {', '.join(paired)} need one sample for each image, in their order; "
            f"there are {len(samples)} samples in {repeats} repeats, and {len(images)} images"
        )
    if "class_accuracy" in config.metrics:
        for some in (samples, images):
            if (np.asarray(some.labels) < 0).any() or not len(some):
                raise ValueError(f"{some.path}: class_accuracy needs the class of each image")
