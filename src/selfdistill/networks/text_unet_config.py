"""Stable Diffusion's U-Net, and the text encoder that it listens to."""

from typing import Any, Literal, Self

from pydantic import model_validator

from selfdistill.base_config import Config, Sha256, Size


class TextConfig(Config):
    """A frozen CLIP text encoder and its tokeniser, in diffusers' layout.

    Attributes:
        weights: "random" (fixed by `seed`), whose tokens are bytes; the path of a local directory
            with text_encoder/ and tokenizer/; or a Hugging Face hub id of one.
        revision: Commit, tag or branch of a hub id, which only these have; None is the newest.
        weights_sha256: What `text_digest` of encoder and tokeniser must be, so that other files are
            refused; None: not checked.
        seed: Seed of random weights, which only these have.
        architecture: Keyword arguments for transformers' `CLIPTextConfig`, of random weights only.
    """

    weights: str
    revision: str | None = None
    weights_sha256: Sha256 | None = None
    seed: int | None = None
    architecture: dict[str, Any] = {}

    @model_validator(mode="after")
    def _keys_fit_the_weights(self) -> Self:
        idle = (
            ["revision", "weights_sha256"] if self.weights == "random" else ["seed", "architecture"]
        )
        given = [key for key in idle if getattr(self, key) not in (None, {})]
        if given:
            raise ValueError(
                f"{' and '.join(given)} mean nothing for text weights {self.weights!r}: leave out"
            )
        return self


class TextUNetConfig(Config):
    """Stable Diffusion's U-Net, which predicts the noise of a discrete time for a prompt.

    A prompt is the name of a class: the data's classes may be ten digits or as many captions as
    there are images.

    Attributes:
        latent_size: Side of the square latents, positions.
        latent_channels: Channels C of the latents, or 3.
        architecture: Keyword arguments for diffusers' `UNet2DConditionModel`, where it differs from
            v1.5's.
        text: What the prompts are read by.
    """

    name: Literal["text_unet"]
    latent_size: Size
    latent_channels: Size
    architecture: dict[str, Any] = {}
    text: TextConfig

    @model_validator(mode="after")
    def _sizes_are_said_once(self) -> Self:
        said = {"sample_size", "in_channels", "out_channels"} & self.architecture.keys()
        if said:
            raise ValueError(
                f"architecture.{sorted(said)[0]}: latent_size and latent_channels say it; leave out"
            )
        return self
