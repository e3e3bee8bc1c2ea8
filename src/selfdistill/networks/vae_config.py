"""Frozen KL autoencoders that make latents of images."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from selfdistill.base_config import Config, Sha256, Size, as_written
from selfdistill.data.config import LatentsConfig


class VAEConfig(Config):
    """A frozen KL autoencoder, in diffusers' layout, that makes latents of images.

    Attributes:
        weights: "random" (fixed by `seed`), the path of a local directory with config.json and
            diffusion_pytorch_model.safetensors, or a Hugging Face hub id. A directory that exists
            is taken as such; else `owner/name`, without a leading dot or slash, is a hub id.
        revision: Commit, tag or branch of a hub id, which only these have; None is the newest.
        weights_sha256: What `VAE.digest` of the weights must be, so that another download or
            directory is refused; None: not checked.
        subfolder: Where in the directory, or of the hub id, the two files lie; None: at its top.
        seed: Seed of random weights, which only these have.
        architecture: Keyword arguments for diffusers' constructor, of random weights only.
        downsampling: Pixels along a side of one latent position; checked.
        latent_channels: Channels C of the latents; checked.
        batch_size: Images a forward pass.
    """

    weights: str
    revision: str | None = None
    weights_sha256: Sha256 | None = None
    subfolder: str | None = None
    seed: int | None = None
    architecture: dict[str, Any] = {}
    downsampling: Size = 8
    latent_channels: Size = 4
    batch_size: Size

    @property
    def place(self) -> Path:
        """Where the files lie in the directory."""
        return Path(self.subfolder or "")

    @model_validator(mode="after")
    def _keys_fit_the_weights(self) -> Self:
        random = self.weights == "random"
        idle = ["revision", "subfolder"] if random else ["seed", "architecture"]
        given = [key for key in idle if getattr(self, key) not in (None, {})]
        if given:
            raise ValueError(
                f"{' and '.join(given)} mean nothing for VAE weights {self.weights!r}: leave out"
            )
        return self


class Decoder(Config):
    """What makes images of latents.

    Attributes:
        vae: The VAE.
        convention: Name in `selfdistill.data.latents.CONVENTIONS`: how the latents are scaled, and
            how pixels are rounded.
    """

    vae: VAEConfig
    convention: Literal["sd", "edm2"]


def decoder_of(latents: Any, vae: Any) -> Decoder | None:
    """Return what decodes a set of latents, of both as written; None for None."""
    if vae is None:
        return None
    convention = LatentsConfig.model_validate(as_written(latents)).convention
    return Decoder(vae=VAEConfig.model_validate(as_written(vae)), convention=convention)
