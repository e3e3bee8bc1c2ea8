"""EDM's preconditioning (Karras et al., arXiv:2206.00364, Sec. 5 and App. B.6).

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),    x = x0 + sigma eps

F is a U-Net. Half of it, the encoder, is a discriminator without a parameter of its own: the mean
over the channels of what its last block leaves is a map of logits (SiDA, arXiv:2410.14919, Sec. 3).
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.edm_config import DenoiserConfig
from selfdistill.networks.persistent_pickle import read_published
from selfdistill.networks.weights import check_keys

SIGMA_DATA = 0.5
"""Standard deviation of the data, in the units of the network."""


# Classes of published networks that scale the same U-Nets otherwise.
_OTHER_SCALES = ("VPPrecond", "VEPrecond", "iDDPMPrecond")


class Scales(NamedTuple):
    """c_skip, c_out, c_in and c_noise of noise levels, (N,) each."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def precondition(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Scales:
    """Return the scales of noise levels (EDM, Table 1).

    Args:
        sigma: Noise levels, (N,), positive.
        sigma_data: Standard deviation of the data.
    """
    total = sigma.square() + sigma_data**2
    return Scales(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data / total.sqrt(),
        into=1 / total.sqrt(),
        noise=sigma.log() / 4,
    )


class Denoiser(nn.Module, ABC):
    """A preconditioned U-Net: clean data of noised data, and logits of its encoder.

    Args:
        config: The architecture.
    """

    process: Literal["noise_levels"] = "noise_levels"

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def null_class(self) -> int:
        """The label of no class."""
        return self.config.num_classes

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of one sample's noise, (C, h, w)."""
        return self.config.latent_channels, self.config.latent_size, self.config.latent_size

    def load_published(self, path: Path) -> None:
        """Take published weights, of a pickle without executing anything of it.

        Args:
            path: As `persistent_pickle.read_published` takes it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, holds anything but weights, or is of another network.
        """
        found, own = read_published(path), self.state_dict()
        num = sum(p.numel() for p in self.parameters())
        title = f"a {self.config.name} of {num:,} parameters"
        if found.class_name in _OTHER_SCALES:
            raise ValueError(f"{path} is a {found.class_name}, whose scales are not EDM's")
        if found.arguments.get("sigma_data", SIGMA_DATA) != SIGMA_DATA:
            raise ValueError(f"{path}: sigma_data is {found.arguments['sigma_data']}, not 0.5")
        weights = {  # scalars are vectors of one here, which ranks can share
            key: value.view(own[key].shape) if value.ndim == 0 and key in own else value
            for key, value in found.weights.items()
        }
        check_keys(path, title, weights, own)
        self.load_state_dict(weights)  # half precision becomes float32

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the blocks: what is worth compiling, and recomputing for memory."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of the blocks' linear layers, each (out, in); not the kernels."""
        return [p for layer in self.layers() for p in layer.parameters() if p.ndim == 2]

    @abstractmethod
    def embed(self, noise: Tensor, classes: Tensor, augment: Tensor | None) -> Tensor:
        """Return what modulates the blocks, (N, E).

        Args:
            noise: c_noise, (N,).
            classes: One-hot classes, zeros for none, (N, K).
            augment: How the images were augmented, (N, augment_dim); None: not at all.
        """

    @abstractmethod
    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return what each of the encoder's blocks leaves, (N, C', h', w') each, the last last."""

    @abstractmethod
    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return F, (N, C, h, w), of what the encoder left."""

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor, augment: Tensor | None = None
    ) -> Tensor:
        """Return D, the clean data that noised data are expected to be.

        Args:
            x: Noised data, (N, C, h, w).
            sigma: Noise levels, (N,).
            labels: Classes in [0, K], K none, (N,).
            augment: How the images were augmented, (N, augment_dim); None: not at all.

        Returns:
            (N, C, h, w), float32.
        """
        return self.denoise_and_judge(x, sigma, labels, augment)[0]

    def denoise_and_judge(
        self, x: Tensor, sigma: Tensor, labels: Tensor, augment: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return D, and the encoder's logits of being real, (N, 1, h', w'), of one pass."""
        scales, embedding, encoded = self._encode(x, sigma, labels, augment)
        f = self.decode(encoded, embedding).float()
        return _beside(scales.skip) * x + _beside(scales.out) * f, _logits(encoded)

    def judge(
        self, x: Tensor, sigma: Tensor, labels: Tensor, augment: Tensor | None = None
    ) -> Tensor:
        """Return the logits alone, (N, 1, h', w'): half the pass."""
        return _logits(self._encode(x, sigma, labels, augment)[2])

    def _encode(
        self, x: Tensor, sigma: Tensor, labels: Tensor, augment: Tensor | None
    ) -> tuple[Scales, Tensor, list[Tensor]]:
        scales = precondition(sigma.float())
        classes = F.one_hot(labels, self.config.num_classes + 1)[:, :-1].float()
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(scales.noise, classes, augment)
        return scales, embedding, self.encode(_beside(scales.into) * x.float(), embedding)


def _logits(encoded: list[Tensor]) -> Tensor:
    return encoded[-1].float().mean(dim=1, keepdim=True)


def _beside(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def resample_filter(device: torch.device | None = None) -> Tensor:
    """Return the mean of 2 x 2 positions as a filter, (1, 1, 2, 2)."""
    return torch.full((1, 1, 2, 2), 0.25, device=device)


def halve(x: Tensor, weights: Tensor) -> Tensor:
    """Return (N, C, h / 2, w / 2) of (N, C, h, w), filtered by (1, 1, 2, 2) channel by channel."""
    channels = x.shape[1]
    return F.conv2d(x, weights.to(x.dtype).expand(channels, -1, -1, -1), stride=2, groups=channels)


def double(x: Tensor, weights: Tensor) -> Tensor:
    """Return (N, C, 2 h, 2 w) of (N, C, h, w), each position spread by four times the filter."""
    channels = x.shape[1]
    spread = (4 * weights).to(x.dtype).expand(channels, -1, -1, -1)
    return F.conv_transpose2d(x, spread, stride=2, groups=channels)
