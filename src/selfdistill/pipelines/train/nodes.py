"""Nodes of the train stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.base_config import as_written
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.config import MethodConfig
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.pipelines.train.config import TrainConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfdistill.data.shards import Shards
    from selfdistill.methods.checkpoint import Checkpoint
else:  # Kedro reads the hints of the parameters and must be able to resolve all of them
    Image = Shards = Checkpoint = Any


def train(
    images: Shards,
    network: NetworkConfig,
    method: MethodConfig,
    train: TrainConfig,
    distributed: DistributedConfig,
    scratch: Path,
    features: Shards | None = None,
    teacher: Any = None,
    start: Any = None,
    taught_by: Checkpoint | None = None,
    selection: Any = None,
    sampling: Any = None,
    reference: Any = None,
    profile: str = "exact",
    latents: Any = None,
    vae: Any = None,
    **weights: Path,
) -> Checkpoint:
    """Train a row, going on from its last saved state if it was interrupted.

    Args:
        images: uint8 images, (H, W, 3) each, or moments of latents, (O, 2C, h, w) each.
        network: The architecture.
        method: The objective.
        train: The loop's parameters.
        distributed: The machine.
        scratch: Where the state of an unfinished training is kept.
        features: Teacher tokens of the same images, (O, L, D) each; None: there are none on disk.
        teacher: The teacher that makes them while training, as written; None: without one.
        start: What the network starts as: a checkpoint, or a file of published weights; None:
            random.
        taught_by: The checkpoint whose network it learns from; None: what it starts as.
        selection: What the best state is selected by, as written; None: the last one counts.
        sampling: The sampling that it names, as written.
        reference: What the evaluate stage knows of the real images.
        profile: Of the extractors, as in `evaluation`.
        latents: The set of latents that the samples are, as written; None: they are images.
        vae: What decodes them, as written.
        weights: Files of the frozen networks that the objective needs, and of the extractor that
            the selection takes, by name.

    Returns:
        The finished checkpoint.
    """
    from selfdistill.pipelines.train.job import train_row
    from selfdistill.pipelines.train.selecting import prepare

    chosen = prepare(images, selection, sampling, reference, profile, latents, vae, weights)
    return train_row(
        images,
        features,
        network,
        method,
        train,
        distributed,
        scratch,
        {name: file for name, file in weights.items() if name in method.root.frozen_weights},
        teacher=None if teacher is None else TeacherConfig.model_validate(as_written(teacher)),
        start=start,
        taught_by=taught_by,
        selection=chosen,
    )


def adopt(start: Any, network: NetworkConfig, method: MethodConfig, scratch: Path) -> Checkpoint:
    """Make a checkpoint of what a row starts from, without training.

    Args:
        start: A checkpoint, or a file of published weights.
        network: The architecture.
        method: The objective, which says how it samples.
        scratch: Where the checkpoint is written.

    Returns:
        The checkpoint.
    """
    from selfdistill.pipelines.train.job import adopt_start

    return adopt_start(start, network, method, scratch)


def draw_progress(checkpoint: Checkpoint) -> Image:
    """Draw samples of the same noise as the training went on.

    Args:
        checkpoint: A finished checkpoint whose best state was selected.
    """
    from selfdistill.pipelines.train.progress_pictures import draw_progress

    return draw_progress(checkpoint.path)


def extract_curves(checkpoint: Checkpoint) -> Path:
    """Return the file of the loss curves that a checkpoint carries.

    Args:
        checkpoint: A finished checkpoint.
    """
    return checkpoint.curves
