import dataclasses
import math

import pytest
import torch

from selfdistill.data.latents import (
    CONVENTIONS,
    decoded_pixels,
    from_vae,
    sample_latents,
    to_vae,
    unscale_latents,
)
from selfdistill.data.pixels import dequantise, quantise
from selfdistill.draws import Draws

SMALLEST_STD = math.exp(-15)  # diffusers clamps the logarithm of the variance at -30

both = pytest.mark.parametrize("name", CONVENTIONS)


def moments(num: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Means to ±30 and deviations from 1e-4 to 1, log-uniform, (N, 8, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    mean = 60 * torch.rand(num, 4, size, size, generator=generator) - 30
    std = 10 ** (-4 * torch.rand(num, 4, size, size, generator=generator))
    return torch.cat((mean, std), dim=1)


def noise(places: list[int], seed: int = 0) -> torch.Tensor:
    return Draws(seed, torch.tensor(places)).normal("latent", 4, 8, 8)


def images() -> torch.Tensor:
    """Every grey level, (1, 3, 16, 16)."""
    return torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)


class TestConstants:
    def test_edm2s_are_those_printed(self):
        edm2 = CONVENTIONS["edm2"]
        assert [round(x, 6) for x in edm2.scale] == [0.119904, 0.108225, 0.134771, 0.152439]
        assert [round(x, 6) for x in edm2.bias] == [-0.696643, -0.351732, -0.016173, 0.327744]
        assert (edm2.low, edm2.high) == (0, 1)

    def test_edm2_brings_the_latents_of_imagenet_to_mean_0_and_deviation_one_half(self):
        mean = torch.tensor([5.81, 3.25, 0.12, -2.15])
        std = torch.tensor([4.17, 4.62, 3.71, 3.28])
        one = torch.cat((mean, std)).view(1, 8, 1, 1)
        low, high = (
            sample_latents(one, torch.full((1, 4, 1, 1), eps), CONVENTIONS["edm2"])
            for eps in (-1.0, 1.0)
        )
        torch.testing.assert_close(low, torch.full_like(low, -0.5))
        torch.testing.assert_close(high, torch.full_like(high, 0.5))

    def test_dit_and_sit_scale_a_sample_by_0_18215(self):
        x, eps = moments(), noise([0, 1, 2])
        z = sample_latents(x, eps, CONVENTIONS["sd"])
        assert torch.equal(z, (x[:, :4] + x[:, 4:] * eps) * 0.18215)
        assert (CONVENTIONS["sd"].low, CONVENTIONS["sd"].high) == (-1, 1)

    def test_they_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            CONVENTIONS["sd"].low = 0.0


class TestSampling:
    @both
    def test_mean_and_deviation_over_many_draws_are_those_of_the_moments(self, name):
        num, convention = 20_000, CONVENTIONS[name]
        one = torch.tensor([3.0, -2.0, 0.5, 8.0, 0.1, 1.0, 1e-3, 0.5]).view(1, 8, 1, 1)
        eps = Draws(0, torch.arange(num)).normal("latent", 4, 1, 1)
        z = sample_latents(one.expand(num, 8, 1, 1), eps, convention).double().flatten(1)
        mean, std = one.flatten().double().chunk(2)
        scale, bias = torch.tensor(convention.scale), torch.tensor(convention.bias)
        error = (z.mean(0) - (mean * scale + bias)).abs() / (std * scale)
        assert error.max() < 4 / num**0.5
        torch.testing.assert_close(
            z.std(0), std * scale.double(), rtol=4 / (2 * num) ** 0.5, atol=0
        )

    @both
    def test_another_epoch_draws_another_latent_and_the_same_place_the_same(self, name):
        """An image's place in the training stream differs between epochs; its moments do not."""
        x, convention = moments(), CONVENTIONS[name]
        first = sample_latents(x, noise([0, 1, 2]), convention)
        second = sample_latents(x, noise([1000, 1001, 1002]), convention)
        assert (first != second).float().mean() > 0.99
        assert torch.equal(first, sample_latents(x, noise([0, 1, 2]), convention))
        alone = sample_latents(x[1:2], noise([1]), convention)
        assert torch.equal(alone, first[1:2])

    @both
    def test_unscaling_inverts(self, name):
        x, eps = moments(), noise([0, 1, 2])
        raw = unscale_latents(sample_latents(x, eps, CONVENTIONS[name]), CONVENTIONS[name])
        torch.testing.assert_close(raw, x[:, :4] + x[:, 4:] * eps, rtol=1e-6, atol=3e-6)

    @both
    def test_no_value_is_waited_for(self, name):
        """A meta tensor has none: whoever reads one is refused."""
        x, eps = torch.empty(2, 8, 4, 4, device="meta"), torch.empty(2, 4, 4, 4, device="meta")
        z = sample_latents(x, eps, CONVENTIONS[name])
        assert unscale_latents(z, CONVENTIONS[name]).shape == (2, 4, 4, 4)

    def test_wrong_shapes_are_named(self):
        sd = CONVENTIONS["sd"]
        with pytest.raises(ValueError, match=r"\(N, 8, h, w\).*\[3, 4, 8, 8\]"):
            sample_latents(moments()[:, :4], noise([0, 1, 2]), sd)
        with pytest.raises(ValueError, match=r"noise must be \[3, 4, 8, 8\], got \[1, 4, 8, 8\]"):
            sample_latents(moments(), noise([0]), sd)
        with pytest.raises(ValueError, match=r"\(N, 4, h, w\), got \[3, 8, 8, 8\]"):
            unscale_latents(moments(), sd)


class TestPixels:
    def test_dit_feeds_what_all_networks_see(self):
        pixels = images().to(torch.uint8).permute(0, 2, 3, 1)
        assert torch.equal(to_vae(images(), CONVENTIONS["sd"]), dequantise(pixels))

    def test_edm2_feeds_zero_to_one(self):
        assert torch.equal(to_vae(images(), CONVENTIONS["edm2"]), images() / 255)

    @both
    def test_what_was_fed_comes_back_as_images(self, name):
        convention = CONVENTIONS[name]
        x = from_vae(to_vae(images(), convention), convention)
        torch.testing.assert_close(x, images() / 127.5 - 1, rtol=0, atol=2e-7)
        assert torch.equal(quantise(x), images().to(torch.uint8).permute(0, 2, 3, 1))

    @both
    def test_decoded_images_are_clamped(self, name):
        convention = CONVENTIONS[name]
        beyond = torch.tensor([convention.low - 0.3, convention.high + 0.3]).view(1, 1, 1, 2)
        assert from_vae(beyond, convention).flatten().tolist() == [-1, 1]
        assert decoded_pixels(beyond, convention).flatten().tolist() == [0, 255]

    def test_dit_rounds_and_edm2_truncates(self):
        decoded = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
        edm2 = decoded_pixels(decoded, CONVENTIONS["edm2"])
        expected = decoded.clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1)
        assert torch.equal(edm2, expected)
        sd = decoded_pixels(2 * decoded - 1, CONVENTIONS["sd"])
        assert torch.equal(sd, quantise(2 * decoded - 1))
        darker = (sd.float() - edm2.float()).mean()
        assert 0.35 < darker < 0.5  # half a grey level, where nothing is clamped
        assert not torch.equal(quantise(from_vae(decoded, CONVENTIONS["edm2"])), edm2)

    @both
    def test_the_official_pixels_survive_as_images(self, name):
        pixels = decoded_pixels(torch.randn(2, 3, 16, 16), CONVENTIONS[name])
        assert torch.equal(quantise(dequantise(pixels)), pixels)


class TestHalfPrecision:
    """What the docs say of latents that are kept in float16."""

    def test_a_mean_near_30_is_off_by_up_to_8e_3_and_a_small_deviation_never_vanishes(self):
        x = moments(64, 32)
        error = (x.half().double() - x.double()).abs()
        assert 7e-3 < error[:, :4].max() <= 2.0**-7
        std = torch.logspace(math.log10(SMALLEST_STD), math.log10(2.0**-14), 100_000)
        assert std.half().min() > 0

    def test_the_error_of_a_latent_is_far_below_its_deviation_of_one(self):
        x, eps = moments(16, 8), noise(list(range(16)))
        for convention in CONVENTIONS.values():
            exact = sample_latents(x, eps, convention)
            stored = sample_latents(x.half(), eps, convention)
            assert 0 < (stored - exact).abs().max() < 1.7e-3
