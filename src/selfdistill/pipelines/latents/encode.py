"""Moments of a VAE's latents: what `selfdistill.data.loader` draws latents from."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.data.config import LatentsConfig
from selfdistill.data.encoding import Encoding, encode_share, encoding_job
from selfdistill.data.latents import CONVENTIONS
from selfdistill.data.shard_job import ShardJob
from selfdistill.data.shards import Shards
from selfdistill.distributed import World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.vae import VAE
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.sources import Code


def latents_job(
    images: Shards, config: LatentsConfig, vae: VAEConfig, distributed: DistributedConfig
) -> ShardJob:
    """Return the job of encoding images with a VAE.

    Args:
        images: uint8 images, (H, W, 3) each.
        config: Whose convention, and how the latents are kept.
        vae: The VAE.
        distributed: The machine.

    Raises:
        FileNotFoundError: If the VAE's weights cannot be had.
        ValueError: If the sides of the images are no multiples of its downsampling.
    """
    network = VAE(vae)  # before the ranks: it may have to be downloaded
    side, rest = divmod(images.shape[0], vae.downsampling)
    if rest:
        raise ValueError(
            f"{images.path}: images of {images.shape[0]} pixels are no multiple of the VAE's "
            f"downsampling {vae.downsampling}"
        )
    encoding = Encoding(
        shape=(2 * vae.latent_channels, side, side),
        dtype=config.dtype,
        mirrored=config.mirrored,
        batch_size=vae.batch_size,
    )
    about = {
        "convention": config.convention,
        "vae": {
            **vae.model_dump(mode="json", include={"downsampling", "latent_channels"}),
            "weights_sha256": network.digest(),
        },
        "source": Code([__name__]).fingerprint(),
        "diffusers": version("diffusers"),
    }
    spec = {"latents": config.model_dump(mode="json"), "vae": vae.model_dump(mode="json")}
    return encoding_job(run, "latents", images, encoding, spec, about, distributed)


def run(spec: Path, world: World) -> None:
    """Encode this rank's share of the images."""

    def start(values: dict[str, Any], side: int) -> Callable[[Tensor], Tensor]:
        config = LatentsConfig.model_validate(values["latents"])
        network = VAE(VAEConfig.model_validate(values["vae"])).to(world.device)
        convention, dtype = CONVENTIONS[config.convention], getattr(torch, config.dtype)
        return lambda images: network.encode(images, convention).to(dtype)

    encode_share(spec, world, start)
