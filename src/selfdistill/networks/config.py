"""Sizes of the networks. Importable without torch, so that the registry stays quick."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, RootModel, model_validator

from selfdistill.base_config import Config

Size = Annotated[int, Field(gt=0)]


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


class NetworkConfig(RootModel[DSDViTConfig]):
    """Any network, told apart by its `name`."""

    model_config = {"frozen": True}


class FeatureCacheConfig(Config):
    """How a teacher's features are kept on disk.

    Attributes:
        mirrored: Whether the tokens of the mirrored image are kept beside those of the image, as
            rows with `flip: true` need; twice the size.
        dtype: Two bytes a value, or one and a scale a token.
    """

    mirrored: bool
    dtype: Literal["float16", "int8"]


class TeacherConfig(Config):
    """A frozen ViT from timm whose patch tokens are features to align with.

    Attributes:
        architecture: timm name, with the pretrained tag where there is one.
        weights: "pretrained" (timm's own download), "random" (fixed by `seed`, which only these
            have), or the path of a safetensors or torch state dict.
        weights_sha256: What `Teacher.digest` of the weights must be, so that another download or
            file is refused; None: not checked.
        seed: Seed of random weights.
        overrides: Keyword arguments for timm's constructor.
        resolution: Side that images are scaled to first, pixels, bicubic; None: as they are.
        patch_size: Side of a patch, pixels; must give as many tokens as the network has.
        dim: Width of the tokens; the network's teacher_dim.
        batch_size: Images a forward pass.
        cache: How features are kept on disk.
    """

    architecture: str
    weights: str
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    seed: int | None = None
    overrides: dict[str, Any] = {}
    resolution: Size | None = None
    patch_size: Size
    dim: Size
    batch_size: Size
    cache: FeatureCacheConfig

    def grid(self, resolution: int) -> int:
        """Return the tokens along a side of images of `resolution` pixels.

        Raises:
            ValueError: If the side is no multiple of a patch.
        """
        side = self.resolution or resolution
        if side % self.patch_size:
            raise ValueError(
                f"{side} pixels are no multiple of the teacher's patch_size {self.patch_size}: set "
                "the teacher's resolution to one"
            )
        return side // self.patch_size


class VAEConfig(Config):
    """A frozen KL autoencoder, in diffusers' layout, that makes latents of images.

    Attributes:
        weights: "random" (fixed by `seed`), the path of a local directory with config.json and
            diffusion_pytorch_model.safetensors, or a Hugging Face hub id. A directory that exists
            is taken as such; else `owner/name`, without a leading dot or slash, is a hub id.
        revision: Commit, tag or branch of a hub id, which only these have; None is the newest.
        seed: Seed of random weights, which only these have.
        architecture: Keyword arguments for diffusers' constructor, of random weights only.
        downsampling: Pixels along a side of one latent position; checked.
        latent_channels: Channels C of the latents; checked.
        batch_size: Images a forward pass.
    """

    weights: str
    revision: str | None = None
    seed: int | None = None
    architecture: dict[str, Any] = {}
    downsampling: Size = 8
    latent_channels: Size = 4
    batch_size: Size

    @model_validator(mode="after")
    def _keys_fit_the_weights(self) -> Self:
        random = self.weights == "random"
        idle = ["revision"] if random else ["seed", "architecture"]
        given = [key for key in idle if getattr(self, key) not in (None, {})]
        if given:
            raise ValueError(
                f"{' and '.join(given)} mean nothing for VAE weights {self.weights!r}: leave out"
            )
        return self
