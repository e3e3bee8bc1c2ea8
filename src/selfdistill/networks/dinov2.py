"""DINOv2 ViT-L/14 (Oquab et al., 2023, arXiv:2304.07193v2), the network behind FD-DINOv2.

FD-DINOv2 is defined by Stein et al., 2023, arXiv:2306.04675v2, whose code took the network from
Meta's torch.hub. The transformer is timm's; what the two do differently at 224 pixels is done as
Meta does it. timm is imported where the network is built: it takes seconds.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.weights import check_keys, read_weights

ARCHITECTURE = "vit_large_patch14_dinov2"
INPUT_SIZE = 224
PATCH_SIZE = 14
POSITION_OFFSET = 0.1  # Meta's hubconf: interpolate_offset, against rounding errors


class Dinov2(nn.Module):
    """Images to the class token after the last norm."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        self.vit: Any = vit
        mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the features of images.

        Args:
            pixels: float32 in [0, 255], (N, 3, 224, 224), from `resize_torch` or `resize_pil`.

        Returns:
            The class token after the final norm, (N, D).

        Raises:
            ValueError: If `pixels` are of another shape.
        """
        if pixels.shape[1:] != (3, INPUT_SIZE, INPUT_SIZE):
            raise ValueError(
                f"pixels must be (N, 3, {INPUT_SIZE}, {INPUT_SIZE}), got {list(pixels.shape)}"
            )
        x = (pixels / 255 - self.mean) / self.std
        return self.vit.forward_features(x)[:, 0]  # (N, D)


def load_dinov2(path: Path, architecture: str = ARCHITECTURE, **sizes: int) -> Dinov2:
    """Read the network from a file.

    Args:
        path: Meta's `dinov2_vitl14_pretrain.pth`, or timm's safetensors of the same.
        architecture: Name of another size in timm; without registers.
        **sizes: What differs from timm's sizes, such as `depth`.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, holds more than tensors, or not this network's.
    """
    import timm

    weights = read_weights(path)
    weights.pop("mask_token", None)  # for training
    if "pos_embed" in weights:
        weights["pos_embed"] = _resize_positions(path, weights["pos_embed"])
    overrides: dict[str, Any] = {"num_classes": 0, "img_size": INPUT_SIZE, **sizes}
    with torch.device("meta"):  # draws nothing from the global generator
        vit = timm.create_model(architecture, **overrides)
    check_keys(path, architecture, weights, vit.state_dict())
    vit.to_empty(device="cpu").load_state_dict(weights)
    return Dinov2(vit).eval().requires_grad_(False)


def resize_torch(images: Tensor) -> Tensor:
    """Resize as EDM2 does unless told otherwise: bicubic with antialias in float32.

    Args:
        images: uint8, (N, H, W, 3).

    Returns:
        float32, (N, 3, 224, 224); beyond [0, 255] where bicubic overshoots.
    """
    pixels = images.permute(0, 3, 1, 2).float()
    size = (INPUT_SIZE, INPUT_SIZE)
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)


def resize_pil(images: Tensor) -> Tensor:
    """Resize as dgm-eval does, the definition of FD-DINOv2: Pillow's bicubic in uint8.

    Args:
        images: uint8, (N, H, W, 3).

    Returns:
        float32 of whole values in [0, 255], (N, 3, 224, 224).
    """
    size = (INPUT_SIZE, INPUT_SIZE)
    pixels = np.empty((len(images), *size, 3), np.uint8)
    for i, image in enumerate(images.cpu().numpy()):
        resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(resized)
    return torch.from_numpy(pixels).to(images.device).permute(0, 3, 1, 2).float()


def _resize_positions(path: Path, positions: Tensor) -> Tensor:
    """Fit position embeddings (1, 1 + M * M, D) to the patches of 224 pixels, (1, 1 + 256, D).

    Meta: bicubic without antialias, at a scale of (16 + 0.1) / 37; timm: with antialias, at a
    scale of 16 / 37; we follow Meta.
    """
    patches, size = INPUT_SIZE // PATCH_SIZE, positions.shape[1] if positions.ndim == 3 else 0
    grid = math.isqrt(max(size - 1, 0))
    if grid == 0 or size != 1 + grid**2:
        raise ValueError(f"{path}: pos_embed {list(positions.shape)} is no square grid")
    if grid == patches:
        return positions
    scale = (patches + POSITION_OFFSET) / grid
    tokens = positions[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    tokens = F.interpolate(tokens, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], tokens.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
