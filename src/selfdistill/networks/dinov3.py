"""Frozen teachers from timm: DINOv3 (arXiv:2508.10104) and any other ViT with patch tokens."""

import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from selfdistill.networks.config import TeacherConfig


class Teacher(nn.Module):
    """Images to normalised patch tokens of the last block; class and register tokens dropped."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: TeacherConfig, resolution: int) -> None:
        super().__init__()
        self.vit: Any = _create(config, resolution)
        mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)
        tokens, width = self(torch.zeros(1, 3, resolution, resolution)).shape[1:]
        expected = ((resolution // config.patch_size) ** 2, config.dim)
        if (tokens, width) != expected:
            raise ValueError(
                f"teacher {config.architecture} gives {tokens} tokens of width {width} for "
                f"{resolution} pixels; its patch_size and dim say {expected[0]} of {expected[1]}"
            )
        self.shape = (int(tokens), int(width))

    def digest(self) -> str:
        """Return the sha256 of all weights, in the order of their names."""
        digest = hashlib.sha256()
        for name, value in sorted(self.vit.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return patch tokens (N, L, D) of uint8-valued images in [0, 255], (N, 3, H, W)."""
        x = (images / 255 - self.mean) / self.std
        return self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]


def weights_file(config: TeacherConfig) -> Path | None:
    """Return the file that a teacher's weights come from; None when they come from elsewhere.

    Raises:
        FileNotFoundError: If the configuration names a file that is not there.
    """
    if config.weights in ("pretrained", "random"):
        return None
    path = Path(config.weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"teacher weights {path}: no such file; give a safetensors or torch state dict of "
            f"timm's {config.architecture}, or 'pretrained'"
        )
    return path


def _create(config: TeacherConfig, resolution: int) -> nn.Module:
    """Build the ViT and its weights."""
    overrides = dict(config.overrides)
    if config.weights == "pretrained":
        try:
            return timm.create_model(
                config.architecture, pretrained=True, num_classes=0, **overrides
            )
        except (OSError, RuntimeError, ValueError) as error:
            hub = timm.get_pretrained_cfg(config.architecture)
            raise FileNotFoundError(
                f"the weights of teacher {config.architecture} could not be had ({error}); "
                f"download {hub.hf_hub_id if hub else 'them'} from the Hugging Face hub elsewhere "
                "and give the path of its safetensors file as the teacher's `weights`"
            ) from error
    if config.weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed or 0)
            return timm.create_model(
                config.architecture, img_size=resolution, num_classes=0, **overrides
            )
    path = weights_file(config)
    vit = timm.create_model(config.architecture, num_classes=0, **overrides)
    timm.models.load_checkpoint(vit, str(path), strict=True, weights_only=True)
    return vit
