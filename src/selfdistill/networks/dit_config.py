"""Sizes of DiT and of SiT."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config, Size


class TransformerConfig(Config):
    """What DiT and SiT have in common: a plain transformer on patches of latents.

    Attributes:
        latent_size: Side of the square latents, positions: an eighth of the image's. A network of
            images themselves takes their side.
        latent_channels: Channels C of the latents, or 3.
        patch_size: Side of a patch, positions.
        width: Hidden dimension D, a multiple of 4 and of num_heads.
        depth: Blocks.
        num_heads: Attention heads.
        num_classes: Classes K; label K is the null class.
        learn_sigma: Whether there are C more output channels, for the variance: DiT trains them,
            SiT's published network has them and drops them.
    """

    latent_size: Size
    latent_channels: Size
    patch_size: Size
    width: Annotated[int, Field(gt=0, multiple_of=4)]
    depth: Size
    num_heads: Size
    num_classes: Size
    learn_sigma: bool

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.latent_size % self.patch_size:
            raise ValueError(
                f"latent_size {self.latent_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        return self

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.latent_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens L, one a patch."""
        return self.grid**2

    @property
    def out_channels(self) -> int:
        """Channels of the last layer."""
        return 2 * self.latent_channels if self.learn_sigma else self.latent_channels


class DiTConfig(TransformerConfig):
    """DiT, which predicts the noise of a discrete time."""

    name: Literal["dit"]


class ProjectorConfig(Config):
    """REPA's projectors: three layers from a block's output to a teacher's tokens.

    Attributes:
        block: Blocks that come before, as REPA's encoder_depth counts them.
        width: Hidden width of the projectors.
        dims: Width of each teacher's tokens.
    """

    block: Size
    width: Size
    dims: tuple[Size, ...]


class SiTConfig(TransformerConfig):
    """SiT, which predicts a velocity of the linear path; and REPA's, trained beside a teacher.

    Attributes:
        noise_at: The network's own time of pure noise: 0, as in SiT, or 1, as in REPA, whose
            velocity points the other way.
        projectors: REPA's, which only its training needs; None: there are none.
    """

    name: Literal["sit"]
    noise_at: Literal[0, 1]
    projectors: ProjectorConfig | None

    @model_validator(mode="after")
    def _projectors_fit(self) -> Self:
        if self.projectors is not None and self.projectors.block > self.depth:
            raise ValueError(
                f"projectors.block {self.projectors.block}: there are only {self.depth} blocks"
            )
        return self
