"""What each paper makes of a VAE's latents: range of pixels, sampling and scaling.

Of an image are stored the mean and the standard deviation of the VAE's posterior, the moments, not
one sample: each access draws another, as in latent diffusion's own training (arXiv:2112.10752v2,
App. G) and as EDM2's official code does (arXiv:2312.02696v2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentConvention:
    """How a family of papers feeds the VAE, and what its networks take for latents.

    Attributes:
        low: What the VAE is fed for black.
        high: What it is fed for white. Decoded images are clamped to [low, high].
        scale: Factor of each channel.
        bias: Added to each channel after the factor.
        rounding: Added to decoded grey levels before the fraction is dropped: 0.5 rounds, 0 is
            truncation.
    """

    low: float
    high: float
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    rounding: float


# Of the latents of ImageNet by channel, and what they are brought to: Karras et al., 2023, EDM2,
# arXiv:2312.02696v2, official code, StabilityVAEEncoder.
EDM2_RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_RAW_STD = (4.17, 4.62, 3.71, 3.28)
EDM2_STD = 0.5

CONVENTIONS = {
    # DiT (arXiv:2212.09748v2), SiT (2401.08740), REPA (2410.06940): official code; 0.18215 is the
    # VAE's own scaling_factor (arXiv:2112.10752v2, App. D.1).
    "sd": LatentConvention(low=-1.0, high=1.0, scale=(0.18215,) * 4, bias=(0.0,) * 4, rounding=0.5),
    # EDM2, official code. The VAE was trained on [-1, 1]; EDM2 feeds it [0, 1] (NVlabs/edm2, issue
    # 9), and its means and deviations are of those latents.
    "edm2": LatentConvention(
        low=0.0,
        high=1.0,
        scale=tuple(EDM2_STD / std for std in EDM2_RAW_STD),
        bias=tuple(
            -mean * EDM2_STD / std for mean, std in zip(EDM2_RAW_MEAN, EDM2_RAW_STD, strict=True)
        ),
        rounding=0.0,
    ),
}


def sample_latents(moments: Tensor, eps: Tensor, convention: LatentConvention) -> Tensor:
    """Draw clean latents: z0 = (mean + std eps) scale + bias.

    Args:
        moments: C channels of means, then C of standard deviations, of any floating type,
            (N, 2C, h, w).
        eps: Standard normal noise, another at each access, (N, C, h, w).
        convention: Whose latents.

    Returns:
        float32, (N, C, h, w).

    Raises:
        ValueError: If the moments or the noise have another shape.
    """
    num_channels = len(convention.scale)
    if moments.ndim != 4 or moments.shape[1] != 2 * num_channels:
        raise ValueError(
            f"moments must be (N, {2 * num_channels}, h, w), means and then deviations, got "
            f"{list(moments.shape)}"
        )
    mean, std = moments.float().chunk(2, dim=1)  # (N, C, h, w)
    if eps.shape != mean.shape:
        raise ValueError(f"noise must be {list(mean.shape)}, got {list(eps.shape)}")
    raw = mean + std * eps
    return raw * _channels(convention.scale, raw) + _channels(convention.bias, raw)


def unscale_latents(z: Tensor, convention: LatentConvention) -> Tensor:
    """Return what the VAE decodes: (z - bias) / scale, the inverse of the scaling.

    Args:
        z: Latents, (N, C, h, w).
        convention: Whose latents.

    Returns:
        float32, (N, C, h, w).

    Raises:
        ValueError: If the latents have another number of channels.
    """
    if z.ndim != 4 or z.shape[1] != len(convention.scale):
        raise ValueError(f"latents must be (N, {len(convention.scale)}, h, w), got {list(z.shape)}")
    z = z.float()
    return (z - _channels(convention.bias, z)) / _channels(convention.scale, z)


def to_vae(images: Tensor, convention: LatentConvention) -> Tensor:
    """Bring images to the range that the VAE is fed.

    Args:
        images: uint8-valued, in [0, 255], (N, 3, H, W).
        convention: Whose range.

    Returns:
        float32 in [low, high], (N, 3, H, W).
    """
    return images.float() / (255 / (convention.high - convention.low)) + convention.low


def from_vae(decoded: Tensor, convention: LatentConvention) -> Tensor:
    """Bring what the VAE decoded to the range of all images, clamped but not rounded.

    Args:
        decoded: About in [low, high], (N, 3, H, W).
        convention: Whose range.

    Returns:
        In [-1, 1], (N, 3, H, W). `quantise` rounds them, which is DiT's way and not EDM2's: for the
        pixels of the official code there is `decoded_pixels`.
    """
    factor = 2 / (convention.high - convention.low)
    return decoded.clamp(convention.low, convention.high) * factor - (1 + convention.low * factor)


def decoded_pixels(decoded: Tensor, convention: LatentConvention) -> Tensor:
    """Quantise what the VAE decoded as the official code does; metrics depend on it.

    sd: floor(clip(127.5 x + 128, 0, 255)), which is `quantise`; edm2: floor(255 clip(x, 0, 1)),
    half a grey level darker. `dequantise` makes images in [-1, 1] of them, of which `quantise`
    makes the same pixels again.

    Args:
        decoded: About in [low, high], (N, 3, H, W).
        convention: Whose range and rounding.

    Returns:
        (N, H, W, 3), uint8.
    """
    factor = 255 / (convention.high - convention.low)
    levels = decoded.float() * factor + (convention.rounding - convention.low * factor)
    return levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return one number a channel, (C, 1, 1), filled on the device, which nothing waits for."""
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])
