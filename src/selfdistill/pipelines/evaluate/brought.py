"""What a user brings: samples and a reference, anywhere on the disk."""

from pathlib import Path

from selfdistill.data.image_set import ImageSet, open_image_set
from selfdistill.data.npz_images import NpzImages


def open_samples_and_reference(
    samples: str | None, reference: str | None
) -> tuple[ImageSet, ImageSet]:
    """Open both sets; a reference npz may hold statistics alone, which are checked here.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a path is not given, does not hold such images, or the sizes differ.
    """
    if not (samples and reference):
        raise ValueError(
            "say what to compare: kedro run --pipelines=compare "
            "--params=compare.samples=<path>,compare.reference=<path>, or set both in "
            "conf/local/parameters/evaluation.yml"
        )
    judged, held_against = open_image_set(Path(samples)), _open_reference(Path(reference))
    if len(held_against) and judged.shape != held_against.shape:
        raise ValueError(
            f"{samples} holds images of {list(judged.shape)}, {reference} of "
            f"{list(held_against.shape)}; compare images of one size"
        )
    return judged, held_against


def _open_reference(path: Path) -> ImageSet:
    if path.suffix != ".npz":
        return open_image_set(path)
    file = NpzImages.open(path)
    file.statistics()
    return file
