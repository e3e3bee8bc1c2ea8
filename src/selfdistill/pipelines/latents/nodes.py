"""Nodes of the latents stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.data.config import LatentsConfig
from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.vae_config import VAEConfig

if TYPE_CHECKING:
    from selfdistill.data.shards import Shards
else:  # Kedro reads the hints of the parameters and must be able to resolve all of them
    Shards = Any


def encode_latents(
    images: Shards,
    latents: LatentsConfig,
    vae: VAEConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path | None = None,
) -> Shards:
    """Encode each image with the frozen VAE, going on where an earlier run stopped.

    Args:
        images: uint8 images, (H, W, 3) each.
        latents: Whose convention, and how they are kept.
        vae: The VAE.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.
        place: Where the latents are published; if they are these, nothing is made.

    Returns:
        Means and standard deviations of the latents, not scaled, (O, 2C, h, w) an image, row by
        row with the images; O is 1, or 2 with the mirrored image behind.
    """
    from selfdistill.pipelines.latents.encode import latents_job

    return latents_job(images, latents, vae, distributed).build(scratch, place)


def encode_latents_share(
    images: Shards,
    latents: LatentsConfig,
    vae: VAEConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path | None = None,
) -> None:
    """Make this host's share of the shards that `encode_latents` makes.

    Args:
        images: uint8 images, (H, W, 3) each.
        latents: Whose convention, and how they are kept.
        vae: The VAE.
        distributed: The machine, and which of the hosts it is.
        scratch: Where the unfinished shards are kept, seen by all hosts.
        place: Where the latents are published; if they are these, nothing is made.
    """
    from selfdistill.pipelines.latents.encode import latents_job

    job = latents_job(images, latents, vae, distributed)
    job.build_share(scratch, distributed.host, distributed.num_hosts, place)


def repair_latents(
    images: Shards,
    latents: LatentsConfig,
    vae: VAEConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path,
) -> None:
    """Make the damaged shards of published latents anew; do nothing where there are none.

    Args:
        images: The whole images.
        latents: The parameters that they were made with.
        vae: The VAE.
        distributed: The machine.
        scratch: Where shards are made again.
        place: Where the latents are published.
    """
    from selfdistill.pipelines.latents.encode import latents_job

    if place.is_dir():
        job = latents_job(images, latents, vae, distributed)
        job.repair(place, scratch, distributed.num_workers)
