"""LPIPS v0.1 on VGG16: a distance between images as people see it.

Zhang et al., 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
arXiv:1801.03924v2, Sec. 3; VGG16 is configuration D of Simonyan and Zisserman, 2014,
arXiv:1409.1556v6. It is a frozen measure inside a method that trains: it has no parameters, and
adds nothing to a state dict.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.files import sha256_once
from selfdistill.networks.weights import check_keys, read_weights

VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
LINEAR_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"

WIDTHS = (64, 128, 256, 512, 512)
# Convolutions of each stage, by their index in torchvision's `vgg16().features`.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
MIN_SIZE = 16  # four poolings leave one position

# From [-1, 1] to ImageNet's mean and deviation. Not in the paper; official code, ScalingLayer.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10  # official code, normalize_tensor
TINY = 1e-30  # of a squared norm: far below EPS squared, far above what float32 loses


class LPIPS(nn.Module):
    """Distance of images: weighted squared difference of VGG16's unit-normalised features.

    As built the weights are NaN: `load_lpips` and `random_lpips` fill them in.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self._hold("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self._hold("scale", torch.tensor(SCALE).view(3, 1, 1))
        in_channels = 3
        for stage, (width, convolutions) in enumerate(zip(widths, STAGES, strict=True)):
            for index in convolutions:
                self._hold(f"weight_{index}", torch.full((width, in_channels, 3, 3), torch.nan))
                self._hold(f"bias_{index}", torch.full((width,), torch.nan))
                in_channels = width
            self._hold(f"linear_{stage}", torch.full((1, width, 1, 1), torch.nan))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compare images; the gradient flows to `x` alone.

        d(x, y) = Σ_l 1 / (H_l W_l) Σ_hw Σ_c w_lc (x̂_lhwc - ŷ_lhwc)²    (Eq. 1)

        Args:
            x: Images in about [-1, 1], (N, 3, H, W).
            y: What they are compared with, (N, 3, H, W).

        Returns:
            Distances, float32, (N,).

        Raises:
            ValueError: If the shapes differ, are not of RGB images, or a side is below `MIN_SIZE`.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                f"images must be (N, 3, H, W), both alike, got {list(x.shape)} and {list(y.shape)}"
            )
        if min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f"images of {x.shape[2]} x {x.shape[3]} pixels are too small for the five stages "
                f"of LPIPS; resize them to {MIN_SIZE} x {MIN_SIZE} or more"
            )
        x_features = self.features(x)
        with torch.no_grad():
            y_features = self.features(y)
        distances = []
        with torch.autocast(x.device.type, enabled=False):
            for stage, (x_l, y_l) in enumerate(zip(x_features, y_features, strict=True)):
                # Paper: ||w ⊙ (x̂ - ŷ)||²; official code and weights: w once; we follow the code.
                w_l = self.get_buffer(f"linear_{stage}").float()
                difference = unit_normalise(x_l.float()) - unit_normalise(y_l.float())
                distances.append((w_l * difference.square()).sum(1).mean((1, 2)))  # (N,)
        return torch.stack(distances).sum(0)

    def features(self, x: Tensor) -> list[Tensor]:
        """Compute VGG16's features after the last ReLU of each stage.

        Args:
            x: Images in about [-1, 1], (N, 3, H, W).

        Returns:
            relu1_2, relu2_2, relu3_3, relu4_3, relu5_3: (N, C_l, H / 2^l, W / 2^l) for l = 0..4.
        """
        x = (x.float() - self.shift) / self.scale
        taps: list[Tensor] = []
        for convolutions in STAGES:
            if taps:
                x = F.max_pool2d(x, 2)
            for index in convolutions:
                weight, bias = self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}")
                x = F.relu(F.conv2d(x, weight, bias, padding=1), inplace=True)
            taps.append(x)
        return taps

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)


def unit_normalise(x: Tensor) -> Tensor:
    """Divide by the norm over channels: x / (|x| + 1e-10), with a finite gradient at x = 0.

    Args:
        x: Features, (N, C, H, W).

    Returns:
        Features whose norm is 1, or 0 where they are all zero, (N, C, H, W).
    """
    # The root of 0 has an infinite slope; clamped, it is a constant there.
    norm = x.square().sum(1, keepdim=True).clamp_min(TINY).sqrt()  # (N, 1, H, W)
    return x / (norm + EPS)


def load_lpips(vgg16: Path, linear: Path) -> LPIPS:
    """Read the measure as it was published.

    Args:
        vgg16: torchvision's `vgg16-397923af.pth`.
        linear: `lpips/weights/v0.1/vgg.pth` of richzhang/PerceptualSimilarity.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is another one; it names the file, its sha256 and the expected one.
    """
    network = LPIPS()
    convolutions = {
        f"features.{index}.{kind}": network.get_buffer(f"{kind}_{index}")
        for convolutions in STAGES
        for index in convolutions
        for kind in ("weight", "bias")
    }
    weights = _read_published(vgg16, "torchvision's VGG16", VGG16_SHA256)
    _fill(vgg16, "VGG16", convolutions, weights)
    linears = {
        f"lin{stage}.model.1.weight": network.get_buffer(f"linear_{stage}")
        for stage in range(len(STAGES))
    }
    weights = _read_published(linear, "LPIPS v0.1 for VGG16", LINEAR_SHA256)
    _fill(linear, "LPIPS for VGG16", linears, weights)
    return network


def random_lpips(seed: int = 0, widths: Sequence[int] = (8, 16, 32, 32, 32)) -> LPIPS:
    """Build the same formula on a narrow VGG of random weights; it makes no published number.

    Convolutions are drawn from N(0, 2 / fan_in) (He et al., 2015, arXiv:1502.01852v1, Eq. 10), the
    biases are 0, the weight of each of C channels is 1 / C.

    Args:
        seed: Of a generator of its own; the global one is left alone.
        widths: Channels of the five stages.
    """
    network = LPIPS(widths)
    generator = torch.Generator().manual_seed(seed)
    for stage, convolutions in enumerate(STAGES):
        for index in convolutions:
            weight = network.get_buffer(f"weight_{index}")
            fan_in = weight[0].numel()
            weight.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
            network.get_buffer(f"bias_{index}").zero_()
        network.get_buffer(f"linear_{stage}").fill_(1 / widths[stage])
    return network


def _read_published(path: Path, title: str, sha256: str) -> dict[str, Tensor]:
    """Read a file that must be the published one, without a classifier's weights."""
    found = sha256_once(path)
    if found != sha256:
        raise ValueError(
            f"{path} (sha256 {found}) is not {title} as published (sha256 {sha256}): delete it, "
            "and the catalog fetches it again"
        )
    weights = read_weights(path)
    return {key: value for key, value in weights.items() if not key.startswith("classifier.")}


def _fill(
    path: Path, title: str, buffers: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    check_keys(path, title, weights, buffers)
    for key, buffer in buffers.items():
        buffer.copy_(weights[key])
