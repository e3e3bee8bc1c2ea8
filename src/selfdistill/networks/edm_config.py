"""Sizes of the U-Nets of EDM and EDM2."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config, Size

Dropout = Annotated[float, Field(ge=0, lt=1)]


class DenoiserConfig(Config):
    """What the three U-Nets have in common: they return clean data, preconditioned as EDM has it.

    Attributes:
        latent_size: Side of the square images or latents, positions.
        latent_channels: Their channels C.
        width: Channels of the first level.
        multipliers: Channels of each level as multiples of `width`; each level has half the side of
            the one before.
        num_blocks: Blocks of a level in the encoder; the decoder has one more.
        attention_sides: Sides of the levels whose blocks attend.
        num_classes: Classes K; label K is no class.
        conditional: Whether the network sees them.
        dropout: Share of a block's hidden features dropped in training.
    """

    name: str
    latent_size: Size
    latent_channels: Size
    width: Size
    multipliers: tuple[Size, ...] = Field(min_length=1)
    num_blocks: Size
    attention_sides: tuple[Size, ...]
    num_classes: Size
    conditional: bool
    dropout: Dropout

    @model_validator(mode="after")
    def _sides_halve(self) -> Self:
        if self.latent_size % 2 ** (len(self.multipliers) - 1):
            raise ValueError(
                f"latent_size {self.latent_size} cannot be halved {len(self.multipliers) - 1} times"
            )
        return self

    @property
    def sides(self) -> list[int]:
        """Sides of the levels, the largest first."""
        return [self.latent_size >> level for level in range(len(self.multipliers))]


class DDPMppConfig(DenoiserConfig):
    """DDPM++ (Song et al., arXiv:2011.13456) as EDM has it, its "vp" networks.

    Attributes:
        augment_dim: Numbers that say how an image was augmented; 0: it is told none.
    """

    name: Literal["ddpmpp"]
    augment_dim: Annotated[int, Field(ge=0)]


class ADMConfig(DenoiserConfig):
    """ADM (Dhariwal and Nichol, arXiv:2105.05233) as EDM has it."""

    name: Literal["adm"]

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        _check_heads(self, (*self.attention_sides, self.sides[-1]))
        return self


class EDM2Config(DenoiserConfig):
    """EDM2's magnitude-preserving U-Net, config G; of fewer than 64 channels, nothing attends.

    Attributes:
        logvar_channels: Features of the noise level that the log-variance is linear in; 0: the
            network has none, as generators.
    """

    name: Literal["edm2"]
    logvar_channels: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        _check_heads(self, self.attention_sides)
        return self


def _check_heads(config: DenoiserConfig, attending: tuple[int, ...]) -> None:
    """Refuse levels that attend and whose channels are no multiple of a head's 64."""
    levels = zip(config.sides, config.multipliers, strict=True)
    if any(config.width * multiple % 64 for side, multiple in levels if side in attending):
        raise ValueError(
            f"width {config.width}: levels that attend have heads of 64 channels, so a multiple of "
            "64 each"
        )
