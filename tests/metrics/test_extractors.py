import functools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from selfdistill.metrics import extractors
from selfdistill.metrics.definitions import DEFINITIONS
from selfdistill.metrics.extractors import DinoV2Extractor, InceptionExtractor, build_extractor
from selfdistill.metrics.full_precision import full_precision
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.networks.dinov2 import load_dinov2
from selfdistill.networks.inception import TAPS

CPU = torch.device("cpu")
SMALL = "vit_small_patch14_dinov2"
SIZES = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def photos(num: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Smooth colours under noise, uint8 (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(num)
    coarse = torch.rand(num, 3, 8, 8, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = smooth + 8 * torch.randn(smooth.shape, generator=generator)
    return noisy.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def relative_rms(value: Tensor, expected: Tensor) -> float:
    error = (value.cpu().double() - expected.double()).square().mean() / expected.double().var()
    return float(error.sqrt())


@pytest.fixture
def lower_precision():
    """What determinism.py allows for training, or less."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def precision() -> tuple[str, bool, bool]:
    matmul = torch.backends.cuda.matmul.allow_tf32
    return torch.get_float32_matmul_precision(), matmul, torch.backends.cudnn.allow_tf32


class Recorder(nn.Module):
    """In a network's place: under which precision it is called."""

    def forward(self, *_):
        self.seen = precision()
        return {}


@pytest.mark.usefixtures("lower_precision")
class TestFullPrecision:
    def test_tf32_is_off_inside_and_on_again_outside(self):
        before = precision()
        assert before == ("medium", True, True)
        with full_precision():
            assert precision() == ("highest", False, False)
        assert precision() == before

    def test_an_error_inside_switches_it_on_again(self):
        before = precision()
        with pytest.raises(KeyError), full_precision():
            raise KeyError
        assert precision() == before

    def test_networks_are_called_inside(self, monkeypatch):
        network = Recorder()
        monkeypatch.setattr(extractors, "load_inception", lambda _: network)
        monkeypatch.setattr(extractors, "load_dinov2", lambda _: network)
        makers = (
            lambda: InceptionExtractor(Path(), "exact", CPU),
            lambda: DinoV2Extractor(Path(), "torch", CPU),
        )
        for maker in makers:
            network.seen = None
            maker()(photos(1), ["pool_3"])
            assert network.seen == ("highest", False, False)
            assert precision() == ("medium", True, True)


@pytest.fixture(scope="module")
def exact(random_inception) -> dict[str, Tensor]:
    return InceptionExtractor(random_inception, "exact", CPU)(photos(3), TAPS)


class TestInception:
    def test_the_profiles_agree_in_every_tap(self, random_inception, exact):
        fast = InceptionExtractor(random_inception, "fast", CPU)(photos(3), TAPS)
        assert list(exact) == list(fast) == list(TAPS)
        for tap in TAPS:
            assert exact[tap].std() > 0
            assert relative_rms(fast[tap], exact[tap]) < 1e-4
        assert not torch.equal(fast["pool_3"], exact["pool_3"])  # two profiles, indeed

    def test_it_is_built_from_the_file_under_the_name_of_its_weights(self, random_inception, exact):
        others = {d.weights.name: Path("absent") for d in DEFINITIONS.values() if d.weights}
        weights = others | {DEFINITIONS["inception_2015"].weights.name: random_inception}
        built = build_extractor("inception_2015", weights, "exact", CPU)
        torch.testing.assert_close(built(photos(3), ["pool_3"])["pool_3"], exact["pool_3"])

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.usefixtures("lower_precision")
    @pytest.mark.parametrize("profile", ["exact", "fast"])
    def test_a_gpu_agrees_with_the_cpu_though_tf32_is_allowed(
        self, random_inception, exact, profile
    ):
        on_gpu = InceptionExtractor(random_inception, profile, torch.device("cuda"))
        features = on_gpu(photos(3), TAPS)
        for tap in TAPS:
            assert features[tap].is_cuda
            assert relative_rms(features[tap], exact[tap]) < 1e-4


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """A small network at 224 pixels, so that its positions are taken as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = timm.create_model(SMALL, num_classes=0, img_size=224, **SIZES).eval()
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return vit.requires_grad_(False)


class TestDinoV2:
    @pytest.fixture
    def weights(self, vit, tmp_path, monkeypatch) -> Path:
        small = functools.partial(load_dinov2, architecture=SMALL, **SIZES)
        monkeypatch.setattr(extractors, "load_dinov2", small)
        torch.save(vit.state_dict(), tmp_path / "small.pth")
        return tmp_path / "small.pth"

    def class_tokens(self, vit: nn.Module, resized: list[np.ndarray]) -> Tensor:
        pixels = np.stack(resized).astype(np.float32) / 255
        normal = (pixels - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
        x = torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)
        return vit.forward_features(x)[:, 0]

    def resized_in_uint8(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))

    def resized_in_float(self, image: np.ndarray) -> np.ndarray:
        """Pillow's same filter on each channel in float32, where nothing is rounded or cut."""
        channels = (Image.fromarray(image[..., c].astype(np.float32)) for c in range(3))
        resized = [each.resize((224, 224), Image.Resampling.BICUBIC) for each in channels]
        return np.stack([np.asarray(each) for each in resized], axis=-1)

    @pytest.mark.parametrize("size", [(64, 64), (256, 300)])
    def test_each_resize_gives_its_own_class_tokens(self, vit, weights, size):
        images = photos(2, *size)
        by_torch = DinoV2Extractor(weights, "torch", CPU)(images, ["cls"])["cls"]
        by_pil = DinoV2Extractor(weights, "pil", CPU)(images, ["cls"])["cls"]
        in_float = self.class_tokens(vit, [self.resized_in_float(each) for each in images])
        in_uint8 = self.class_tokens(vit, [self.resized_in_uint8(each) for each in images])
        assert by_torch.shape == by_pil.shape == (2, SIZES["embed_dim"])
        assert relative_rms(by_torch, in_float) < 1e-4
        assert relative_rms(by_pil, in_uint8) < 1e-4
        assert 1e-3 < relative_rms(by_torch, by_pil) < 0.1

    @pytest.mark.parametrize(("name", "resize"), [("dinov2", "torch"), ("dinov2_pil", "pil")])
    def test_each_name_stands_for_its_resize(self, weights, name, resize):
        built = build_extractor(name, {DEFINITIONS[name].weights.name: weights}, "exact", CPU)
        expected = DinoV2Extractor(weights, resize, CPU)(photos(2), ["cls"])["cls"]
        assert torch.equal(built(photos(2), ["cls"])["cls"], expected)


@pytest.mark.parametrize(
    "images",
    [photos(2).astype(np.float32), photos(2).transpose(0, 3, 1, 2), photos(1)[0]],
    ids=["float32", "NCHW", "one"],
)
def test_images_of_another_kind_are_refused(random_inception, images):
    extractor = InceptionExtractor(random_inception, "exact", CPU)
    with pytest.raises(ValueError, match=r"must be uint8 \(N, H, W, 3\), got " + str(images.dtype)):
        extractor(images, TAPS)


def test_an_extractor_without_weights_needs_no_file():
    assert isinstance(build_extractor("tiny", {}, "exact", CPU), TinyExtractor)
