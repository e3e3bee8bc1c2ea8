"""Frozen teachers from timm: DINOv3 (arXiv:2508.10104) and any other ViT with patch tokens.

timm is imported where a teacher is built: it takes seconds, which most runs need not wait.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.networks.weights import check_digest, digest, read_weights


class Teacher(nn.Module):
    """Images to normalised patch tokens of the last block; class and register tokens dropped.

    Args:
        config: The teacher.
        resolution: Side of the images, pixels.

    Attributes:
        shape: Shape (L, D) of an image's tokens.

    Raises:
        FileNotFoundError: If the weights cannot be had.
        ValueError: If they are not those that the configuration names, or the ViT gives other
            tokens than it says.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TeacherConfig, resolution: int) -> None:
        super().__init__()
        from timm.data.config import resolve_model_data_config

        self.side = config.resolution or resolution
        self.vit: Any = _create(config, self.side)
        expects = resolve_model_data_config(self.vit)
        for name in ("mean", "std"):
            values = torch.tensor(expects[name]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.eval().requires_grad_(False)
        found = self(torch.zeros(1, 3, resolution, resolution)).shape[1:]
        self.shape = (config.grid(resolution) ** 2, config.dim)
        if found != self.shape:
            raise ValueError(
                f"teacher {config.architecture} gives {found[0]} tokens of width {found[1]} for "
                f"{self.side} pixels; its patch_size and dim say {self.shape[0]} of {self.shape[1]}"
            )
        if config.weights_sha256 is not None:
            check_digest(self.digest(), config.weights_sha256, f"teacher {config.architecture}")

    def digest(self) -> str:
        """Return the sha256 of all weights, in the order of their names."""
        return digest(self.vit.state_dict())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return patch tokens (N, L, D) of uint8-valued images in [0, 255], (N, 3, H, W)."""
        x = (images / 255 - self.mean) / self.std
        if x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
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


def _create(config: TeacherConfig, side: int) -> nn.Module:
    """Build the ViT for images of `side` pixels, with its weights."""
    import timm

    arguments = {"img_size": side, "num_classes": 0, **config.overrides}
    if config.weights == "pretrained":
        try:
            return timm.create_model(config.architecture, pretrained=True, **arguments)
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
            return timm.create_model(config.architecture, **arguments)
    return _from_file(config, arguments)


def _from_file(config: TeacherConfig, arguments: dict[str, Any]) -> nn.Module:
    """Build the ViT with the weights of a file; position tables are fitted to the image by timm."""
    import timm

    file = weights_file(config)
    assert file is not None
    published = timm.get_pretrained_cfg(config.architecture)
    classifier = (published and published.classifier) or "head"
    found = read_weights(file)
    weights = {name: found[name] for name in found if not name.startswith(f"{classifier}.")}
    overlay = {"state_dict": weights, "num_classes": 0}
    try:
        return timm.create_model(
            config.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except RuntimeError as error:
        raise ValueError(
            f"{file}: not the weights of timm's {config.architecture}: {error}"
        ) from error
