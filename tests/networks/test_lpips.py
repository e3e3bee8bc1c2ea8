from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as torchmetrics_lpips
from kedro.config import OmegaConfigLoader
from torch import Tensor, nn

from selfdistill.files import sha256_of
from selfdistill.networks import lpips
from selfdistill.networks.lpips import LPIPS, load_lpips, random_lpips, unit_normalise
from selfdistill.settings import CONFIG_LOADER_ARGS

LINEAR = Path(torchmetrics_lpips.__file__).parent / "lpips_models" / "vgg.pth"
VGG16 = "vgg16-397923af.pth"


def noisy_images(num: int, size: int = 64, seed: int = 0) -> Tensor:
    """Smooth colours under noise, in [-1, 1], (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 2 * torch.rand(num, 3, 4, 4, generator=generator) - 1
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth + 0.2 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def distance_and_gradient(measure: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    distance = measure(x, y).flatten()
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    return distance.detach(), gradient


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torchmetrics' LPIPS: random VGG16, the published linear weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchmetrics_lpips._LPIPS(pretrained=True, net="vgg", pnet_rand=True)


@pytest.fixture(scope="module")
def vgg16(reference, tmp_path_factory) -> Path:
    """The reference's VGG16 as torchvision publishes one, classifier and all."""
    convolutions = {
        f"features.{name.split('.', 1)[1]}": value
        for name, value in reference.net.state_dict().items()
    }
    path = tmp_path_factory.mktemp("vgg16") / VGG16
    torch.save(convolutions | {"classifier.0.weight": torch.zeros(3)}, path)
    return path


@pytest.fixture
def believed(monkeypatch, vgg16) -> Path:
    monkeypatch.setattr(lpips, "VGG16_SHA256", sha256_of(vgg16))
    return vgg16


class TestParity:
    @pytest.fixture
    def measure(self, believed) -> LPIPS:
        return load_lpips(believed, LINEAR)

    def test_value_and_gradient_are_those_of_torchmetrics(self, measure, reference):
        x, y = noisy_images(2), noisy_images(2, seed=1)
        distance, gradient = distance_and_gradient(measure, x, y)
        expected, expected_gradient = distance_and_gradient(reference, x, y)
        assert distance.shape == (2,)
        assert relative_error(distance, expected) < 1e-5
        assert relative_error(gradient, expected_gradient) < 1e-5

    def test_sides_need_not_be_equal_nor_powers_of_two(self, measure, reference):
        x, y = noisy_images(1)[..., :50, :37], noisy_images(1, seed=1)[..., :50, :37]
        with torch.no_grad():
            assert relative_error(measure(x, y), reference(x, y).flatten()) < 1e-5

    def test_identity_gives_zero(self, measure):
        x = noisy_images(1, size=32)
        distance, gradient = distance_and_gradient(measure, x, x.clone())
        assert distance.tolist() == [0]
        assert gradient.abs().max() == 0


class TestFormula:
    def test_features_are_normalised_as_published(self):
        generator = torch.Generator().manual_seed(0)
        for scale in (1, 1e-6, 1e-10, 1e-12, 1e-20):
            x = scale * torch.rand(2, 8, 4, 4, generator=generator)
            norm = x.double().square().sum(1, keepdim=True).sqrt()
            expected = (x / (norm + 1e-10)).float()
            torch.testing.assert_close(unit_normalise(x), expected, atol=1e-6, rtol=1e-6)

    def test_zero_features_are_zero_with_a_finite_gradient(self):
        x = torch.zeros(1, 8, 4, 4, requires_grad=True)
        with torch.autograd.set_detect_anomaly(True):
            unit = unit_normalise(x)
            (gradient,) = torch.autograd.grad(unit.square().sum() + unit.sum(), x)
        assert unit.abs().max() == 0
        assert gradient.isfinite().all()

    def test_black_images_have_a_finite_gradient(self):
        """With a bias that silences the last stage, so that all its features are zero."""
        measure = random_lpips()
        measure.bias_28.fill_(-1e6)
        black = torch.full((2, 3, 32, 32), -1.0)
        assert measure.features(black)[4].abs().max() == 0
        for other in (black, noisy_images(2, size=32)):
            with torch.autograd.set_detect_anomaly(True):
                distance, gradient = distance_and_gradient(measure, black, other)
            assert distance.isfinite().all()
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("mixed", [False, True])
    def test_it_is_the_printed_sum_in_float32_whatever_the_features_are_in(self, mixed):
        measure = random_lpips()
        x = noisy_images(2, size=32)
        y = x + 0.01 * noisy_images(2, size=32, seed=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            distance, pairs = (
                measure(x, y),
                zip(measure.features(x), measure.features(y), strict=True),
            )
        expected = torch.zeros(2, dtype=torch.float64)
        for stage, (x_l, y_l) in enumerate(pairs):
            x_hat, y_hat = (
                f.double() / (f.double().norm(dim=1, keepdim=True) + 1e-10) for f in (x_l, y_l)
            )
            w_l = measure.get_buffer(f"linear_{stage}").double()
            expected += (w_l * (x_hat - y_hat) ** 2).sum(1).mean((1, 2))
        torch.testing.assert_close(distance.double(), expected, rtol=1e-5, atol=0)

    def test_samples_do_not_mix(self):
        measure = random_lpips()
        x, y = noisy_images(3, size=32), noisy_images(3, size=32, seed=1)
        alone = torch.cat([measure(x[i : i + 1], y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(measure(x, y), alone)

    def test_it_grows_with_the_noise(self):
        measure, x = random_lpips(), noisy_images(1, size=32)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        distances = [float(measure(x + strength * noise, x)) for strength in (0, 0.05, 0.1, 0.2)]
        assert distances[0] == 0
        assert distances == sorted(set(distances))


class TestFrozen:
    def test_its_owner_saves_nothing_and_trains_nothing_of_it(self):
        owner = nn.Module()
        owner.perceptual = random_lpips()
        assert owner.state_dict() == {}
        assert list(owner.parameters()) == []

    def test_all_its_tensors_move_with_it(self):
        measure = random_lpips().to("meta")
        assert {buffer.device.type for buffer in measure.buffers()} == {"meta"}
        features = measure.features(torch.empty(2, 3, 32, 32, device="meta"))
        assert [tuple(tap.shape[1:]) for tap in features] == [
            (8, 32, 32),
            (16, 16, 16),
            (32, 8, 8),
            (32, 4, 4),
            (32, 2, 2),
        ]

    def test_no_gradient_reaches_the_target(self):
        x = noisy_images(1, size=32).requires_grad_()
        y = noisy_images(1, size=32, seed=1).requires_grad_()
        random_lpips()(x, y).sum().backward()
        assert x.grad.abs().max() > 0
        assert y.grad is None

    def test_autocast_touches_the_convolutions_alone(self, believed):
        measure = load_lpips(believed, LINEAR)
        x, y = noisy_images(2, size=32), noisy_images(2, size=32, seed=1)
        full, full_gradient = distance_and_gradient(measure, x, y)
        with torch.autocast("cpu", torch.bfloat16):
            assert measure.features(x)[4].dtype == torch.bfloat16
            mixed, mixed_gradient = distance_and_gradient(measure, x, y)
        assert mixed.dtype == mixed_gradient.dtype == torch.float32
        torch.testing.assert_close(mixed, full, rtol=0.02, atol=0)
        # ReLUs that fall on the other side of zero make the gradient differ more.
        assert torch.cosine_similarity(mixed_gradient.flatten(), full_gradient.flatten(), 0) > 0.95


class TestRandom:
    def test_it_is_the_same_for_a_seed_and_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        first, again, other = random_lpips(), random_lpips(), random_lpips(seed=1)
        assert torch.equal(before, torch.get_rng_state())
        x, y = noisy_images(1, size=16), noisy_images(1, size=16, seed=1)
        assert torch.equal(first(x, y), again(x, y))
        assert not torch.equal(first(x, y), other(x, y))

    def test_its_linear_weights_are_equal(self):
        measure = random_lpips(widths=(4, 8, 8, 16, 16))
        for stage, width in enumerate((4, 8, 8, 16, 16)):
            assert torch.equal(
                measure.get_buffer(f"linear_{stage}"), torch.full((1, width, 1, 1), 1 / width)
            )

    def test_unfilled_weights_do_not_pass_for_a_measure(self):
        x = noisy_images(1, size=16)
        assert LPIPS((4, 4, 4, 4, 4))(x, x).isnan().all()


class TestRefusals:
    def test_another_file_is_named_with_what_was_expected(self, vgg16, believed, monkeypatch):
        with pytest.raises(ValueError, match=f"vgg.pth.*{lpips.LINEAR_SHA256[:16]}.*is not torch"):
            load_lpips(LINEAR, LINEAR)
        monkeypatch.undo()
        message = f"{VGG16}.*{sha256_of(vgg16)}.*{lpips.VGG16_SHA256}.*the catalog fetches it again"
        with pytest.raises(ValueError, match=message):
            load_lpips(vgg16, LINEAR)

    def test_another_linear_file_is_named(self, believed):
        with pytest.raises(ValueError, match=rf"{VGG16}.*is not LPIPS.*{lpips.LINEAR_SHA256}"):
            load_lpips(believed, believed)

    def test_a_believed_file_of_another_network_is_named(self, monkeypatch):
        monkeypatch.setattr(lpips, "VGG16_SHA256", lpips.LINEAR_SHA256)
        with pytest.raises(ValueError, match=r"vgg.pth is not VGG16; missing: features"):
            load_lpips(LINEAR, LINEAR)

    def test_an_absent_file_is_named(self, believed, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
            load_lpips(believed, tmp_path / "absent.pth")

    def test_small_images_are_refused(self):
        measure, x = random_lpips(), noisy_images(1, size=16)
        assert measure(x, -x).shape == (1,)
        with pytest.raises(ValueError, match=r"16 x 15 pixels.*resize them to 16 x 16"):
            measure(x[..., :15], x[..., :15])

    @pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 1, 16, 16), (3, 16, 16)])
    def test_other_shapes_are_refused(self, shape):
        measure, x = random_lpips(), noisy_images(1, size=16)
        with pytest.raises(ValueError, match="both alike"):
            measure(x, torch.zeros(shape))
        if shape[0] != 2:
            with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
                measure(torch.zeros(shape), torch.zeros(shape))


def test_the_catalog_fetches_the_files_that_are_accepted(project):
    loader = OmegaConfigLoader(str(project / "conf"), env="base", **CONFIG_LOADER_ARGS)
    catalog = loader["catalog"]
    assert catalog["weights.vgg16"]["sha256"] == lpips.VGG16_SHA256
    assert catalog["weights.lpips_vgg"]["sha256"] == lpips.LINEAR_SHA256
