"""Nodes of the evaluate stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.config import EvaluationConfig

if TYPE_CHECKING:
    from selfdistill.data.image_set import ImageSet
else:  # Kedro resolves all hints of a node; if one fails it skips the validation of the parameters
    ImageSet = Any


def open_brought(
    samples: str | None, reference: str | None, evaluation: EvaluationConfig, repeats: int
) -> tuple[ImageSet, ImageSet]:
    """Open the images that a user brings, and check that they fit each other.

    Args:
        samples: Path of what is judged.
        reference: Path of what it is held against.
        evaluation: The metrics.
        repeats: Equal consecutive parts of the samples.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a path is not given, or does not hold images that can be compared.
    """
    from selfdistill.pipelines.evaluate.brought import open_samples_and_reference

    return open_samples_and_reference(samples, reference, evaluation, repeats)


def describe_reference(
    images: ImageSet,
    evaluation: EvaluationConfig,
    distributed: DistributedConfig,
    scratch: Path,
    published: Path | None = None,
    **files: Path,
) -> dict[str, Any]:
    """Measure the real images: what samples are compared with, and the baselines.

    Args:
        images: Real images, uint8, (H, W, 3) each.
        evaluation: The metrics, and how.
        distributed: The machine.
        scratch: Where unfinished work is kept.
        published: A reference file, which is believed instead of the images; the images
            themselves where they are a file with statistics.
        files: Files of the extractors' weights, by name; and as "published_2" and so on further
            reference files, each believed for what those before it do not know.

    Returns:
        NumPy arrays by name, as `describe` lists them.

    Raises:
        ValueError: If a file of weights is not the network it should be, or a file is damaged.
    """
    from selfdistill.data.npz_images import NpzImages
    from selfdistill.pipelines.evaluate.collect import Collector
    from selfdistill.pipelines.evaluate.published import ReferenceFile
    from selfdistill.pipelines.evaluate.reference import describe

    further = sorted(name for name in files if name.startswith("published_"))
    if published is not None:
        references = [ReferenceFile.open(published)]
        references += [ReferenceFile.open(files.pop(name)) for name in further]
    elif isinstance(images, NpzImages) and images.statistics():
        references = [ReferenceFile.of(images)]
    else:
        references = []
    return describe(images, references, Collector(evaluation, files, distributed, scratch))


def evaluate_samples(
    samples: ImageSet,
    images: ImageSet,
    reference: dict[str, Any],
    evaluation: EvaluationConfig,
    distributed: DistributedConfig,
    scratch: Path,
    repeats: int = 1,
    **weights: Path,
) -> dict[str, Any]:
    """Compare generated images with real ones.

    Args:
        samples: Generated images, uint8, (H, W, 3) each, with the classes they were asked for.
        images: Real images, uint8, (H, W, 3) each.
        reference: What `describe_reference` made of `images`.
        evaluation: The metrics, and how.
        distributed: The machine.
        scratch: Where unfinished work is kept.
        repeats: Equal consecutive parts of the samples, each evaluated by itself.
        weights: Files of the extractors' weights, by name.

    Returns:
        JSON values: {"metrics": {metric: number}, "baselines": {metric: {name: number}},
        "protocol": {...}}; with repeats also "std" and "repeats".

    Raises:
        ValueError: If the reference was made of other images or for other metrics, the images
            differ in size, or a file of weights is not the network it should be.
    """
    from selfdistill.pipelines.evaluate.collect import Collector
    from selfdistill.pipelines.evaluate.measure import evaluate

    collector = Collector(evaluation, weights, distributed, scratch)
    return evaluate(samples, images, reference, repeats, collector)
