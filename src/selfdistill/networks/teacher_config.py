"""Frozen ViTs whose tokens are features to align with."""

from typing import Any, Literal

from selfdistill.base_config import Config, Sha256, Size


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
    weights_sha256: Sha256 | None = None
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
