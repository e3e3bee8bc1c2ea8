"""Between uint8 images (N, H, W, 3) and what networks see: (N, 3, H, W) in [-1, 1]."""

import torch
from torch import Tensor

QUANTISATION = "floor(clip(127.5 x + 128, 0, 255))"


def quantise(x: Tensor) -> Tensor:
    """Round images in [-1, 1] to uint8, floor(clip(127.5 x + 128, 0, 255)), as DiT and EDM do.

    Args:
        x: (N, 3, H, W).

    Returns:
        (N, H, W, 3), uint8.
    """
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def dequantise(pixels: Tensor) -> Tensor:
    """Return x = pixels / 127.5 - 1, of which `quantise` makes the same pixels again.

    Args:
        pixels: (N, H, W, 3), uint8.

    Returns:
        (N, 3, H, W), float32, in [-1, 1].
    """
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
