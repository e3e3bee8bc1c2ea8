"""Nodes of the export stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.networks.vae_config import decoder_of

if TYPE_CHECKING:
    from selfdistill.data.shards import Shards
    from selfdistill.methods.checkpoint import Checkpoint
    from selfdistill.methods.release import Release
else:  # Kedro resolves all hints of a node
    Shards = Checkpoint = Release = Any


def export(
    checkpoint: Checkpoint,
    images: Shards,
    paper: dict[str, Any],
    data: str,
    samplings: dict[str, Any],
    scratch: Path,
    latents: Any = None,
    vae: Any = None,
    **metrics: dict[str, Any] | None,
) -> Release:
    """Write the network of a checkpoint that samples to a directory that others can use.

    Args:
        checkpoint: Trained weights.
        images: The real images, for the names of the classes.
        paper: The row's `PaperConfig`, as written.
        data: The dataset of the row.
        samplings: The row's samplings, as written; the one for which the paper has the lowest FID
            becomes the release's default, and without the paper's figures the first.
        scratch: Where the release is written.
        latents: The set of latents that the row lives in, as written; None: it makes images.
        vae: What decodes them, as written.
        metrics: By "<row>.<sampling>.metrics", the evaluate stage's dict, or None: not run yet.

    Returns:
        The release.

    Raises:
        ValueError: If the checkpoint was trained on other images.
    """
    from selfdistill.methods.release import Release
    from selfdistill.pipelines.export.card import Card, default_sampling

    of = checkpoint.about.get("inputs", {}).get("images", images.fingerprint)
    if latents is None and of != images.fingerprint:
        raise ValueError(
            f"{checkpoint.path} was trained on other images than {images.path} holds, so its "
            "classes may be others: run the train stage again"
        )
    card = Card.collect(
        checkpoint.about,
        paper,
        data,
        samplings,
        metrics,
        num_classes=len(images.class_names),
    )
    return Release.write(
        scratch / "release",
        checkpoint,
        class_names=images.class_names,
        sampling=default_sampling(paper, samplings),
        card=card.markdown(),
        decoder=decoder_of(latents, vae),
    )
