"""Sizes of the one ViT of DSD."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config, Size


class DSDViTConfig(Config):
    """The one ViT of DSD.

    Attributes:
        resolution: Side of the square images, pixels.
        patch_size: Side of a patch, pixels.
        width: Hidden dimension D.
        depth: Transformer layers as the paper counts them: depth - 1 plain ViT blocks and the DiT
            layer of the diffusion head.
        num_heads: Attention heads; D / num_heads must be a multiple of 4 (two-axis rotations).
        latent_dim: Channels C of a latent token.
        normalize_latent: Whether each latent token gets mean 0 and variance 1 over its channels;
            without it the encoder drowns the noise by growing.
        num_registers: Register tokens.
        num_classes: Classes K; label K is the null class.
        teacher_dim: Width of the teacher's tokens, which the alignment head predicts.
        teacher_block: Index of the block whose output is aligned.
        representation_head: Whether there is a predictor of the averaged network's features,
            2 D^2 parameters that only training needs.
    """

    name: Literal["dsd_vit"]
    resolution: Size
    patch_size: Size
    width: Size
    depth: Annotated[int, Field(ge=2)]
    num_heads: Size
    latent_dim: Size
    normalize_latent: bool
    num_registers: Annotated[int, Field(ge=0)]
    num_classes: Size
    teacher_dim: Size
    teacher_block: Annotated[int, Field(ge=0)]
    representation_head: bool

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.resolution % self.patch_size:
            raise ValueError(
                f"resolution {self.resolution} is no multiple of patch_size {self.patch_size}"
            )
        if self.width % (4 * self.num_heads):
            raise ValueError(f"width {self.width} is no multiple of 4 * num_heads {self.num_heads}")
        if self.teacher_block >= self.depth - 1:
            raise ValueError(
                f"teacher_block {self.teacher_block}: there are only {self.depth - 1} blocks"
            )
        return self

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.resolution // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Latent tokens L, one a patch."""
        return self.grid**2
