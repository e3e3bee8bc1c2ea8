import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from selfdistill.metrics import clean_fid
from selfdistill.metrics.clean_fid import CleanFidExtractor
from selfdistill.metrics.definitions import DEFINITIONS
from selfdistill.metrics.extractors import build_extractor

# The genuine network comes as TorchScript, which torch would rather see gone.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)

CPU = torch.device("cpu")
FILE = "inception-2015-12-05.pt"


class Double(nn.Module):
    """The genuine file in small: `layers`, and a forward that resizes in its own way."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        x = nn.functional.interpolate(x, [299, 299], mode="nearest")
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=23), nn.ReLU(), nn.Conv2d(8, 2048, 13), nn.Flatten()
        )
    return layers.eval().requires_grad_(False)


@pytest.fixture
def weights(layers, tmp_path) -> Path:
    traced = torch.jit.trace(layers, torch.zeros(2, 3, 299, 299))
    torch.jit.script(Double(traced)).save(str(tmp_path / FILE))
    return tmp_path / FILE


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def images(height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)


def normal(pixels: Tensor) -> Tensor:
    return (pixels - 128) / 128


def relative_rms(value: Tensor, expected: Tensor) -> float:
    error = (value.double() - expected.double()).square().mean() / expected.double().var()
    return float(error.sqrt())


def clean_resize(image: np.ndarray) -> np.ndarray:
    """Pillow's bicubic on each channel in float32, without rounding, cut to [0, 255]."""
    channels = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
    resized = [each.resize((299, 299), Image.Resampling.BICUBIC) for each in channels]
    return np.stack([np.asarray(each) for each in resized]).clip(0, 255)


@pytest.mark.parametrize("size", [(40, 56), (400, 320), (299, 299)])
def test_clean_is_pillows_bicubic_in_float_before_the_layers(weights, layers, size):
    features = CleanFidExtractor(weights, "clean", CPU)(images(*size), ["pool_3"])["pool_3"]
    pixels = torch.from_numpy(np.stack([clean_resize(image) for image in images(*size)]))
    assert features.shape == (3, 2048)
    assert relative_rms(features, layers(normal(pixels))) < 1e-6


def test_legacy_tensorflow_leaves_the_resize_to_the_script(weights, layers):
    extractor = CleanFidExtractor(weights, "legacy_tensorflow", CPU)
    features = extractor(images(), ["pool_3"])["pool_3"]
    rows, columns = (np.arange(299) * size // 299 for size in (40, 56))
    nearest = images()[:, rows[:, None], columns].transpose(0, 3, 1, 2).astype(np.float32)
    assert relative_rms(features, layers(normal(torch.from_numpy(nearest)))) < 1e-6
    clean = CleanFidExtractor(weights, "clean", CPU)(images(), ["pool_3"])["pool_3"]
    assert relative_rms(features, clean) > 0.1


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_each_mode_is_an_extractor_by_its_name(weights, mode):
    built = build_extractor(mode, {DEFINITIONS[mode].weights.name: weights}, "exact", CPU)
    expected = CleanFidExtractor(weights, mode, CPU)(images(), ["pool_3"])["pool_3"]
    assert torch.equal(built(images(), ["pool_3"])["pool_3"], expected)


def test_the_network_is_called_in_full_precision(weights, monkeypatch):
    class Recorder(nn.Module):
        def __init__(self, *_, **__):
            super().__init__()

        def forward(self, x):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return x

    seen = []
    monkeypatch.setattr(clean_fid, "InceptionV3W", Recorder)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        CleanFidExtractor(weights, "clean", CPU)(images(), ["pool_3"])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", False)]


def test_a_file_of_another_name_is_refused(weights):
    renamed = weights.rename(weights.with_name("inception.pt"))
    with pytest.raises(ValueError, match=rf"inception\.pt: .* the name {FILE} only"):
        CleanFidExtractor(renamed, "clean", CPU)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_a_file_that_is_missing_is_not_downloaded(tmp_path, mode):
    with pytest.raises(ValueError, match="does not exist"):
        CleanFidExtractor(tmp_path / FILE, mode, CPU)
    assert not list(tmp_path.iterdir())
