"""Inception-v3 of 2015-12-05, the network behind FID, sFID and the Inception Score.

Szegedy et al., 2015, arXiv:1512.00567v3. The release that metrics use parts from the paper: 1008
classes, average pools that leave the padding out, and a maximum pool in the last block. Modules are
named as in pytorch-fid and torch-fidelity, so that their files load.
"""

import copy
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from selfdistill.networks.inception_graph import read_graph
from selfdistill.networks.weights import check_keys, read_tensors, read_weights

TAPS = ("pool_768", "spatial", "pool_3", "logits")

INPUT_SIZE = 299
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7  # ADM's evaluator: 17 * 17 * 7 = 2023 is about pool_3's 2048
CACHED_IMAGES = 8  # as many go through a CPU at a time: measured, 1.1x to 1.2x of 50


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D, H', W')."""
        return self.bn(self.conv(x)).relu_()


class Mixed35(nn.Module):
    """Block of the 35x35 grid (Fig. 5): 1x1, 5x5, twice 3x3, pool."""

    def __init__(self, in_channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(in_channels, 64)
        self.branch5x5_1 = Conv(in_channels, 48)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(in_channels, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(in_channels, pool)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 35, 35) to (N, 224 + pool, 35, 35)."""
        one = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = self.branch_pool(_average_pool(x))
        return torch.cat([one, five, three, pool], dim=1)


class Reduce35(nn.Module):
    """From the 35x35 grid to the 17x17 (Fig. 10)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(in_channels, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 35, 35) to (N, 480 + C, 17, 17)."""
        once = self.branch3x3(x)
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pool = F.max_pool2d(x, 3, stride=2)
        return torch.cat([once, twice, pool], dim=1)


class Mixed17(nn.Module):
    """Block of the 17x17 grid (Fig. 6): 1x1, 7x7 as 1x7 and 7x1, the same twice, pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(768, 192)
        self.branch7x7_1 = Conv(768, width)
        self.branch7x7_2 = Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Conv(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Conv(768, width)
        self.branch7x7dbl_2 = Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Conv(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Conv(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Conv(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Conv(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 768, 17, 17) to the same shape; the first 192 channels are `branch1x1`."""
        one = self.branch1x1(x)
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        pool = self.branch_pool(_average_pool(x))
        return torch.cat([one, once, twice, pool], dim=1)


class Reduce17(nn.Module):
    """From the 17x17 grid to the 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(768, 192)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 768, 17, 17) to (N, 1280, 8, 8)."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        seven = self.branch7x7x3_4(seven)
        pool = F.max_pool2d(x, 3, stride=2)
        return torch.cat([three, seven, pool], dim=1)


class Mixed8(nn.Module):
    """Block of the 8x8 grid (Fig. 7): 1x1, 3x3 as 1x3 beside 3x1, twice 3x3 so, pool."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(in_channels, 320)
        self.branch3x3_1 = Conv(in_channels, 384)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(in_channels, 448)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(in_channels, 192)

    def pool(self, x: Tensor) -> Tensor:
        """Pool 3x3 at stride 1: (N, C, 8, 8) to the same shape."""
        return _average_pool(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 8, 8) to (N, 2048, 8, 8)."""
        one = self.branch1x1(x)
        once = self.branch3x3_1(x)
        once_a, once_b = self.branch3x3_2a(once), self.branch3x3_2b(once)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        twice_a, twice_b = self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)
        pool = self.branch_pool(self.pool(x))
        return torch.cat([one, once_a, once_b, twice_a, twice_b, pool], dim=1)


class LastMixed8(Mixed8):
    """The last block, whose pool is of maxima."""

    # Paper: average; the released graph: maximum (mixed_10); we follow the graph.
    def pool(self, x: Tensor) -> Tensor:
        """Pool 3x3 at stride 1: (N, C, 8, 8) to the same shape."""
        return F.max_pool2d(x, 3, stride=1, padding=1)


class InceptionV3(nn.Module):
    """Images to the features that metrics are made of.

    As built it computes what torch-fidelity computes, bit for bit on a CPU; `fold` makes the fast
    profile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = Mixed35(192, pool=32)
        self.Mixed_5c = Mixed35(256, pool=64)
        self.Mixed_5d = Mixed35(288, pool=64)
        self.Mixed_6a = Reduce35(288)
        self.Mixed_6b = Mixed17(128)
        self.Mixed_6c = Mixed17(160)
        self.Mixed_6d = Mixed17(160)
        self.Mixed_6e = Mixed17(192)
        self.Mixed_7a = Reduce17()
        self.Mixed_7b = Mixed8(1280)
        self.Mixed_7c = LastMixed8(2048)
        self.fc = nn.Linear(2048, NUM_CLASSES)
        self.folded = False

    @torch.no_grad()
    def forward(self, images: Tensor, taps: Collection[str] = TAPS) -> dict[str, Tensor]:
        """Compute features in one pass, no further than the last one needs.

        Args:
            images: In [0, 255], uint8 or float32, (N, H, W, 3), of any size.
            taps: Which features, out of `TAPS`.

        Returns:
            float32 features by tap: "pool_768", the mean of Mixed_6e (N, 768); "spatial", the first
            channels of the 1x1 branch of Mixed_6d in the order of rows, columns, channels
            (N, 2023); "pool_3" (N, 2048); "logits" without the bias (N, 1008).

        Raises:
            ValueError: If a tap is unknown, or `images` are of another shape or type.
        """
        if unknown := set(taps) - set(TAPS):
            raise ValueError(f"unknown taps {sorted(unknown)}; there are {', '.join(TAPS)}")
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be (N, H, W, 3), got {list(images.shape)}")
        if images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images must be uint8 or float32, got {images.dtype}")
        small = self.folded and images.device.type == "cpu"
        size = CACHED_IMAGES if small else max(len(images), 1)
        parts = [self._features(part, taps) for part in images.split(size)]
        return {tap: torch.cat([part[tap] for part in parts]) for tap in TAPS if tap in taps}

    def _features(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """Return at least the taps that are wanted."""
        x = self._input(images)  # (N, 3, 299, 299)
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))  # (N, 32, 147, 147)
        x = F.max_pool2d(self.Conv2d_2b_3x3(x), 3, stride=2)  # (N, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (N, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (N, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        if set(taps) <= {"spatial"}:
            return {"spatial": _spatial(self.Mixed_6d.branch1x1(x))}
        x = self.Mixed_6d(x)
        features = {"spatial": _spatial(x)}  # (N, 2023)
        x = self.Mixed_6e(x)
        features["pool_768"] = F.adaptive_avg_pool2d(x, 1).flatten(1)
        if {"pool_3", "logits"}.isdisjoint(taps):
            return features
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        features["pool_3"] = F.adaptive_avg_pool2d(x, 1).flatten(1)
        features["logits"] = features["pool_3"] @ self.fc.weight.T
        return features

    def _input(self, images: Tensor) -> Tensor:
        """Turn images (N, H, W, 3) into inputs in [-1, 1), (N, 3, 299, 299)."""
        x = resize_tf1(images.float(), INPUT_SIZE)
        x = ((x - 128) * (1 / 128)).permute(0, 3, 1, 2)  # which is channels_last
        return x if self.folded else x.contiguous()


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1 did: bilinear, corners not aligned, no half pixel, no antialias.

    Args:
        images: float32, (N, H, W, C).
        size: Height and width of the result.

    Returns:
        (N, size, size, C); `images` themselves when they have the size already.
    """
    _, height, width, _ = images.shape
    if height == width == size:
        return images
    left, right, share = _grid(width, size, images.device)
    rows = _interpolate(images, left, right, share[:, None], dim=2)  # (N, H, size, C)
    top, bottom, share = _grid(height, size, images.device)
    return _interpolate(rows, top, bottom, share[:, None, None], dim=1)


def load_inception(path: Path) -> InceptionV3:
    """Read the network from a file.

    Args:
        path: A state dict as `.pth`, `.pt` or `.safetensors` in the layout of pytorch-fid and
            torch-fidelity, or the `.pb` that Inception was released as.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, holds more than tensors, or not this network's.
    """
    weights = read_tensors(path, read_graph) if path.suffix == ".pb" else read_weights(path)
    weights = {
        key: value
        for key, value in weights.items()
        if not key.startswith("AuxLogits.") and not key.endswith("num_batches_tracked")
    }
    with torch.device("meta"):  # draws nothing from the global generator
        network = InceptionV3()
    expected = network.state_dict()
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    check_keys(path, "Inception-v3 of 2015-12-05", weights | counters, expected)
    network.to_empty(device="cpu").load_state_dict(weights | counters)
    return network.eval().requires_grad_(False)


def fold(network: InceptionV3) -> InceptionV3:
    """Return a copy whose batch norms are folded into the convolutions, weights channels_last.

    On a CPU it takes about 0.6 of the time; features differ by some 1e-6 (rms, relative).

    Args:
        network: In evaluation mode.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv.double(), module.bn.double()).float()
            module.bn = nn.Identity()
    network.folded = True
    return network.to(memory_format=torch.channels_last)


def _average_pool(x: Tensor) -> Tensor:
    """Average 3x3 at stride 1 over what is inside the image: (N, C, H, W) to the same shape."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _spatial(x: Tensor) -> Tensor:
    """Return the first channels of (N, C, 17, 17) as (N, 2023), channels fastest."""
    return x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _interpolate(x: Tensor, low: Tensor, high: Tensor, share: Tensor, dim: int) -> Tensor:
    """Return low + (high - low) * share along a dimension.

    TensorFlow's order of operations, each rounded to float32: torch.lerp would differ in bits.
    """
    start = x.index_select(dim, low)
    return x.index_select(dim, high).sub_(start).mul_(share).add_(start)


@lru_cache(maxsize=16)
def _grid(in_size: int, out_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each output position its two neighbours and the share of the second."""
    scale = torch.tensor(in_size / out_size)
    position = torch.arange(out_size, dtype=torch.float32) * scale
    low = position.long()
    high = (low + 1).clamp_max(in_size - 1)
    return low.to(device), high.to(device), (position - low).to(device)
