"""Nodes of the sample stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.vae_config import decoder_of
from selfdistill.pipelines.sample.config import ReconstructionConfig, SampleConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfdistill.data.shards import Shards
    from selfdistill.methods.checkpoint import Checkpoint
else:  # Kedro reads the hints of the parameters and must be able to resolve all of them
    Image = Shards = Checkpoint = Any


def sample(
    checkpoint: Checkpoint,
    images: Shards,
    sample: SampleConfig,
    distributed: DistributedConfig,
    scratch: Path,
    latents: Any = None,
    vae: Any = None,
    guide: Any = None,
) -> Shards:
    """Generate a checkpoint's images.

    Args:
        checkpoint: Trained weights.
        images: The real images, for their size and the names of the classes.
        sample: Solver and number of images.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.
        latents: The set of latents that the row lives in, as written; None: it makes images.
        vae: What decodes them, as written.
        guide: The network that guides, a checkpoint or a file of published weights; None: the
            checkpoint's own.

    Returns:
        uint8 images, (H, W, 3) each, with the classes they were asked for.
    """
    from selfdistill.pipelines.sample.generate import generate_samples

    decoder = decoder_of(latents, vae)
    return generate_samples(checkpoint, images, sample, distributed, scratch, decoder, guide)


def reconstruct(
    checkpoint: Checkpoint,
    images: Shards,
    reconstruction: ReconstructionConfig,
    distributed: DistributedConfig,
    scratch: Path,
) -> Shards:
    """Encode and decode real images.

    Args:
        checkpoint: Trained weights.
        images: Real images, uint8, (H, W, 3) each.
        reconstruction: Batches and shards.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.

    Returns:
        uint8 images, (H, W, 3) each, in the order of `images`.
    """
    from selfdistill.pipelines.sample.reconstruct import reconstruct_images

    return reconstruct_images(checkpoint, images, reconstruction, distributed, scratch)


def draw_grid(samples: Shards) -> Image:
    """Draw some samples of each of up to ten classes, a row a class.

    Args:
        samples: uint8 images, (H, W, 3) each.
    """
    from selfdistill.pipelines.sample.grid import labelled_grid

    return labelled_grid(samples)


def export_npz(samples: Shards) -> Shards:
    """Hand the samples to the entry that writes them in ADM's format.

    Args:
        samples: uint8 images, (H, W, 3) each.
    """
    return samples
