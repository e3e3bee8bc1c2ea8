"""Parameters of the preprocess stage, and of what is done to images while a network trains."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from selfdistill.base_config import Config

Probability = Annotated[float, Field(ge=0, le=1)]


class PreprocessConfig(Config):
    """How raw images become image shards.

    Attributes:
        crop: Name of the crop in `selfdistill.data.crops.CROPS`.
        resolution: Side of the cropped image in pixels.
        num_classes: Classes the raw images must have.
        class_order: Standard order that they must be in; None: sorted by name, whatever they are.
        shard_size: Raw images a shard; it holds fewer when some are rejected.
        max_reject_share: Largest share of unreadable images that is tolerated, in [0, 1).
    """

    crop: Literal["adm", "edm_center"]
    resolution: int = Field(gt=0)
    num_classes: int = Field(gt=0)
    class_order: Literal["imagenet"] | None = None
    shard_size: int = Field(gt=0)
    max_reject_share: float = Field(ge=0, lt=1)


class LatentsConfig(Config):
    """A set of latents of a dataset's images.

    Attributes:
        vae: Key of `vaes` in teachers.yml.
        convention: Name in `selfdistill.data.latents.CONVENTIONS`: whose range of pixels the VAE is
            fed, and whose scaling the loader applies.
        mirrored: Whether the latents of the mirrored image are kept beside those of the image, as
            rows with `flip: true` need; twice the size.
        dtype: Type in which means and deviations are kept.
    """

    vae: str
    convention: Literal["sd", "edm2"]
    mirrored: bool
    dtype: Literal["float32", "float16"]


class PhotometricConfig(Config):
    """Photometric augmentation of images, as DINO does it.

    The values that DINOv3 trains with, in `dinov3/data/augmentations.py` and, for the blur,
    `dinov3/data/transforms.py`, stand behind each attribute.

    Attributes:
        brightness: Brightness is scaled by U(1 - b, 1 + b), never below 0: 0.4.
        contrast: Contrast is scaled likewise: 0.4.
        saturation: Saturation is scaled likewise: 0.2.
        hue: Hue is turned by U(-h, h) of the colour wheel, in [0, 0.5]: 0.1.
        jitter_probability: Share of the images that get these four: 0.8.
        gray_probability: Share of the images made grey: 0.2.
        blur_probability: Share of the images that are blurred. DINOv3 writes p = 1.0 and 0.1 for
            the two global crops and 0.5 for the local ones, but its `GaussianBlur(p)` hands 1 - p
            to torchvision's `RandomApply`: it blurs 0, 0.9 and 0.5 of them (issue dinov3#286).
        blur_kernel: Positions of the blur's Gaussian along a side, odd: 9.
        blur_sigma: Least and largest deviation of that Gaussian in pixels: 0.1 and 2.0.
        solarize_probability: Share of the images whose bright values are inverted: 0.2 for the
            second global crop, 0 for the others.
        solarize_threshold: The least value that is inverted, in [0, 1]; 0.5 parts 127 from 128, as
            the official 128 of uint8 does.
    """

    brightness: float = Field(ge=0)
    contrast: float = Field(ge=0)
    saturation: float = Field(ge=0)
    hue: float = Field(ge=0, le=0.5)
    jitter_probability: Probability
    gray_probability: Probability
    blur_probability: Probability
    blur_kernel: int = Field(gt=0)
    blur_sigma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    solarize_probability: Probability
    solarize_threshold: float = Field(ge=0, le=1)

    @field_validator("blur_kernel")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, so that it has a centre; got {value}")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _is_increasing(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"must be the least and then the largest, got {list(value)}")
        return value
