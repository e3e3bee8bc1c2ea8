"""Photometric augmentation of DINO on a batch: colour jitter, grey, blur, solarisation.

Caron et al., 2021, arXiv:2104.14294v2, Sec. 3.2, after BYOL (Grill et al., 2020,
arXiv:2006.07733v3, App. B). Each operation does to a float image what torchvision's of the same
name does, but a batch goes through at once, every sample with its own draws: there is no loop over
samples, and nothing that a GPU would have to wait for. What becomes of a sample depends on the seed
and its index alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.data.config import PhotometricConfig
from selfdistill.draws import Draws

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

GRAY = (0.2989, 0.587, 0.114)  # torchvision's luma, of ITU-R BT.601


def photometric(images: Tensor, draws: Draws, config: PhotometricConfig) -> Tensor:
    """Augment each image: jitter, then grey, blur and solarisation, each if its coin says so.

    Args:
        images: float32 in [-1, 1], (N, 3, H, W).
        draws: Random numbers of the N samples, on the images' device.
        config: Strengths and probabilities.

    Returns:
        float32 in [-1, 1], (N, 3, H, W); an image for which no coin fell comes back as it was.

    Raises:
        ValueError: If a side is too short for the blur's reflected border.
    """
    if min(images.shape[2:]) <= config.blur_kernel // 2:
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels are too small for a blur with "
            f"kernel {config.blur_kernel}: a side needs {config.blur_kernel // 2 + 1}; take larger "
            "images or a smaller blur_kernel"
        )
    jittered = _coin(draws, "jitter", config.jitter_probability)
    grayed = _coin(draws, "gray", config.gray_probability)
    blurred = _coin(draws, "blur", config.blur_probability)
    solarized = _coin(draws, "solarize", config.solarize_probability)
    x = (images + 1) / 2
    x = torch.where(jittered, color_jitter(x, draws, config), x)
    x = torch.where(grayed, to_gray(x), x)
    sigma = _uniform(draws, "blur_sigma", *config.blur_sigma)
    x = torch.where(blurred, gaussian_blur(x, sigma, config.blur_kernel), x)
    x = torch.where(solarized & (x >= config.solarize_threshold), 1 - x, x)
    return torch.where(jittered | grayed | blurred | solarized, 2 * x - 1, images)


def color_jitter(x: Tensor, draws: Draws, config: PhotometricConfig) -> Tensor:
    """Adjust brightness, contrast, saturation and hue, in an order drawn for each sample.

    Args:
        x: Images in [0, 1], (N, 3, H, W).
        draws: Random numbers of the N samples.
        config: Strengths.

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    strengths = (config.brightness, config.contrast, config.saturation)
    names = ("brightness", "contrast", "saturation")
    brightness, contrast, saturation = (
        _uniform(draws, name, max(0.0, 1 - strength), 1 + strength)
        for name, strength in zip(names, strengths, strict=True)
    )
    shift = _uniform(draws, "hue", -config.hue, config.hue)
    order = draws.uniform("jitter_order", 4).argsort(dim=1, stable=True)
    for operation in order.view(-1, 4, 1, 1, 1).unbind(1):  # (N, 1, 1, 1)
        gray = to_gray(x)  # (N, 1, H, W)
        # The three are one: a blend with black, with the mean grey, with the grey image.
        mean = gray.mean((2, 3), keepdim=True)
        other = torch.where(operation == CONTRAST, mean, gray)
        other = torch.where(operation == BRIGHTNESS, 0.0, other)
        factor = torch.where(operation == CONTRAST, contrast, saturation)
        factor = torch.where(operation == BRIGHTNESS, brightness, factor)
        blend = (factor * x + (1 - factor) * other).clamp(0, 1)
        x = torch.where(operation == HUE, adjust_hue(x, shift), blend)
    return x


def to_gray(x: Tensor) -> Tensor:
    """Return the luma of RGB images (N, 3, H, W) as (N, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue, at the same saturation and value of HSV.

    Args:
        x: Images in [0, 1], (N, 3, H, W).
        shift: In whole turns of the colour wheel, (N, 1, 1, 1).

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    red, green, blue = x.split(1, dim=1)  # (N, 1, H, W)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, 1.0)  # grey has no hue: any will do
    hue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, hue) + 6 * shift  # in sixths
    # A channel is V - C max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6, n = 5, 3, 1 for R, G, B.
    channels = []
    for n in (5, 3, 1):
        k = (n + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(channels, dim=1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image by its own Gaussian; the border is reflected.

    Sums of shifted images, not a convolution: cuDNN may round that to TF32, and choose how it adds
    up by the size of the batch.

    Args:
        x: Images, (N, C, H, W).
        sigma: Standard deviation in pixels, (N, 1, 1, 1).
        kernel: Positions of the Gaussian, odd.

    Returns:
        (N, C, H, W).
    """
    half, (height, width) = kernel // 2, x.shape[2:]
    position = torch.arange(-half, half + 1, device=x.device)
    density = torch.exp(-0.5 * (position / sigma) ** 2)  # (N, 1, 1, kernel)
    weights = (density / density.sum(3, keepdim=True)).split(1, dim=3)
    padded = F.pad(x, (half, half, half, half), mode="reflect")
    rows = _weighted_sum(padded, weights, width, dim=3)  # (N, C, H + 2 half, W)
    return _weighted_sum(rows, weights, height, dim=2)


def _weighted_sum(x: Tensor, weights: Sequence[Tensor], size: int, dim: int) -> Tensor:
    """Add up the windows of a size along a dimension, each with its weight (N, 1, 1, 1)."""
    total = x.narrow(dim, 0, size) * weights[0]
    for start, weight in enumerate(weights[1:], 1):
        total = torch.addcmul(total, x.narrow(dim, start, size), weight)
    return total


def _coin(draws: Draws, name: str, probability: float) -> Tensor:
    """Return booleans, (N, 1, 1, 1)."""
    return draws.bernoulli(name, probability, 1, 1, 1)


def _uniform(draws: Draws, name: str, low: float, high: float) -> Tensor:
    """Return U(low, high), (N, 1, 1, 1)."""
    return low + (high - low) * draws.uniform(name, 1, 1, 1)
