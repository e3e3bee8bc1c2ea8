"""What a user brings: samples and a reference, anywhere on the disk."""

from pathlib import Path

from selfdistill.data.image_set import ImageSet, open_image_set
from selfdistill.data.npz_images import NpzImages
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.pipelines.evaluate.checks import check_sets


def open_samples_and_reference(
    samples: str | None, reference: str | None, config: EvaluationConfig, repeats: int
) -> tuple[ImageSet, ImageSet]:
    """Open both sets; a reference npz may hold statistics alone, which are checked here.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a path is not given or does not hold such images, or they do not fit.
    """
    if not (samples and reference):
        raise ValueError(
            "say what to compare: kedro run --pipelines=compare "
            "--params=compare.samples=<path>,compare.reference=<path>, or set both in "
            "conf/local/parameters/evaluation.yml"
        )
    judged, held_against = open_image_set(Path(samples)), _open_reference(Path(reference))
    check_sets(judged, held_against, config, repeats)
    return judged, held_against


def _open_reference(path: Path) -> ImageSet:
    if path.suffix.lower() != ".npz":
        return open_image_set(path)
    file = NpzImages.open(path)
    return file if file.statistics() else open_image_set(path)
