import itertools
from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import functional as torchvision

from selfdistill.data.config import PhotometricConfig
from selfdistill.data.photometric import adjust_hue, photometric
from selfdistill.draws import Draws

OFF = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": 0.0,
    "blur_kernel": 9,
    "blur_sigma": (0.1, 2.0),
    "solarize_probability": 0.0,
    "solarize_threshold": 0.5,
}
DINO = OFF | {
    "jitter_probability": 0.8,
    "gray_probability": 0.2,
    "blur_probability": 0.5,
    "solarize_probability": 0.2,
}
NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
COINS = ("jitter", "gray", "blur", "solarize")


def config(values: dict = OFF, **changes) -> PhotometricConfig:
    return PhotometricConfig(**(values | changes))


def colours(num: int, height: int = 16, width: int = 16) -> Tensor:
    """Noise in [-1, 1], with grey, black and white among it, (N, 3, H, W)."""
    images = 2 * torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(0)) - 1
    images[:, 1:, 0], images[:, :, 1], images[:, :, 2] = images[:, :1, 0], -1, 1
    return images


def draws(num: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(num))


def factors(drawn: Draws, config: PhotometricConfig) -> dict[str, list[float]]:
    """The factors of each sample, from the ranges of torchvision's ColorJitter."""
    ranges = {
        name: (max(0, 1 - getattr(config, name)), 1 + getattr(config, name))
        for name in ("brightness", "contrast", "saturation")
    }
    ranges |= {"hue": (-config.hue, config.hue), "blur_sigma": config.blur_sigma}
    return {
        name: (low + (high - low) * drawn.uniform(name).double()).tolist()
        for name, (low, high) in ranges.items()
    }


def orders(drawn: Draws) -> list[list[int]]:
    return drawn.uniform("jitter_order", 4).argsort(dim=1).tolist()


ADJUST = ("brightness", "contrast", "saturation", "hue")


def by_torchvision(images: Tensor, drawn: Draws, config: PhotometricConfig) -> Tensor:
    """One image after the other, by torchvision's functions."""
    coins = {name: drawn.bernoulli(name, getattr(config, f"{name}_probability")) for name in COINS}
    strengths, results = factors(drawn, config), []
    for i, image in enumerate((images + 1) / 2):
        if coins["jitter"][i]:
            for name in (ADJUST[operation] for operation in orders(drawn)[i]):
                image = getattr(torchvision, f"adjust_{name}")(image, strengths[name][i])
        if coins["gray"][i]:
            image = torchvision.rgb_to_grayscale(image, num_output_channels=3)
        if coins["blur"][i]:
            image = torchvision.gaussian_blur(image, config.blur_kernel, strengths["blur_sigma"][i])
        if coins["solarize"][i]:
            image = torchvision.solarize(image, config.solarize_threshold)
        results.append(2 * image - 1)
    return torch.stack(results)


CERTAIN = {
    "brightness": NO_JITTER | {"jitter_probability": 1.0, "brightness": 0.4},
    "contrast": NO_JITTER | {"jitter_probability": 1.0, "contrast": 0.4},
    "saturation": NO_JITTER | {"jitter_probability": 1.0, "saturation": 0.2},
    "hue": NO_JITTER | {"jitter_probability": 1.0, "hue": 0.5},
    "strong": NO_JITTER | {"jitter_probability": 1.0, "brightness": 1.5, "contrast": 2.0},
    "jitter": {"jitter_probability": 1.0},
    "gray": {"gray_probability": 1.0},
    "blur": {"blur_probability": 1.0},
    "one sigma": {"blur_probability": 1.0, "blur_sigma": (1.5, 1.5), "blur_kernel": 3},
    "solarize": {"solarize_probability": 1.0},
    "solarize above": {"solarize_probability": 1.0, "solarize_threshold": 0.9},
}


class TestParity:
    @pytest.mark.parametrize("name", CERTAIN)
    def test_each_operation_is_that_of_torchvision(self, name):
        certain, images = config(**CERTAIN[name]), colours(24, height=16, width=11)
        expected = by_torchvision(images, draws(24), certain)
        assert (expected - images).abs().amax((1, 2, 3)).median() > 0.05
        result = photometric(images, draws(24), certain)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)

    def test_so_is_their_composition(self):
        images = colours(200)
        expected = by_torchvision(images, draws(200), config(DINO))
        result = photometric(images, draws(200), config(DINO))
        different = ((result - expected).abs() > 1e-5).float().mean()
        assert different < 1e-4  # where rounding decides whether a value is solarised

    def test_a_factor_beyond_one_is_clipped_at_zero(self):
        drawn, strong = draws(2000), config(**CERTAIN["strong"])
        assert min(factors(drawn, strong)["brightness"]) > 0
        images = colours(2000, 9, 9)
        darkest = photometric(images, drawn, strong).amax((1, 2, 3)).min()
        assert darkest < -0.9

    def test_a_whole_turn_of_the_hue_is_none(self):
        x = (colours(4) + 1) / 2
        whole = adjust_hue(x, torch.ones(4, 1, 1, 1))
        torch.testing.assert_close(whole, x, atol=1e-5, rtol=0)
        third = adjust_hue(x, torch.full((4, 1, 1, 1), 1 / 3))
        torch.testing.assert_close(third, x.roll(1, dims=1), atol=1e-5, rtol=0)


class TestOrder:
    def test_every_order_is_drawn_equally_often(self):
        counts = Counter(map(tuple, orders(draws(24_000))))
        assert set(counts) == set(itertools.permutations(range(4)))
        assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())

    def test_the_order_of_a_sample_is_honoured(self):
        """Its own order fits the result of each sample, and another order does not."""
        jitter = config(jitter_probability=1.0, brightness=0.8, contrast=0.8, saturation=0.8)
        images, drawn = colours(48), draws(48)
        result = photometric(images, drawn, jitter)
        strengths, fits = factors(drawn, jitter), []
        for i, order in enumerate(orders(drawn)):
            for candidate in itertools.permutations(range(4)):
                image = (images[i] + 1) / 2
                for name in (ADJUST[operation] for operation in candidate):
                    image = getattr(torchvision, f"adjust_{name}")(image, strengths[name][i])
                error = (2 * image - 1 - result[i]).abs().max()
                fits.append((candidate == tuple(order), float(error)))
        assert max(error for own, error in fits if own) < 1e-5
        assert sorted(error for own, error in fits if not own)[len(fits) // 2] > 0.01


class TestDraws:
    def test_a_sample_does_not_depend_on_its_batch(self):
        images = colours(12)
        index = torch.arange(100, 112)
        whole = photometric(images, Draws(3, index), config(DINO))
        for part in (slice(0, 1), slice(5, 6), slice(4, 9)):
            alone = photometric(images[part], Draws(3, index[part]), config(DINO))
            assert torch.equal(alone, whole[part])
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        shuffled = photometric(images[order], Draws(3, index[order]), config(DINO))
        assert torch.equal(shuffled, whole[order])

    def test_seed_and_index_decide(self):
        images, before = colours(8), torch.get_rng_state()
        result = photometric(images, draws(8), config(DINO))
        assert torch.equal(result, photometric(images, draws(8), config(DINO)))
        assert not torch.equal(result, photometric(images, draws(8, seed=1), config(DINO)))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("name", COINS)
    def test_the_share_of_changed_images_is_the_probability(self, name):
        num, probability = 4000, DINO[f"{name}_probability"]
        images = colours(num, 5, 5)
        result = photometric(images, draws(num), config(**{f"{name}_probability": probability}))
        share = float((result != images).any(1).any(1).any(1).float().mean())
        assert abs(share - probability) < 4 * (probability * (1 - probability) / num) ** 0.5

    def test_the_coins_are_independent(self):
        coins = torch.stack([draws(4000).bernoulli(name, 0.5) for name in COINS]).double()
        assert (torch.corrcoef(coins) - torch.eye(4)).abs().max() < 4 / 4000**0.5


class TestImages:
    def test_everything_off_is_the_identity(self):
        images = 0.3 * colours(4)  # which does not survive the way to [0, 1] and back
        assert not torch.equal(2 * ((images + 1) / 2) - 1, images)
        assert torch.equal(photometric(images, draws(4), config()), images)

    def test_an_image_without_a_coin_comes_back_as_it_was(self):
        images, drawn = 0.3 * colours(200), draws(200)
        coins = [drawn.bernoulli(name, DINO[f"{name}_probability"]) for name in COINS]
        spared = ~torch.stack(coins).any(0)
        assert spared.sum() > 5
        result = photometric(images, drawn, config(DINO))
        assert torch.equal(result[spared], images[spared])

    def test_they_stay_in_range_and_finite(self):
        strong = config(DINO, brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5)
        images = torch.cat([colours(200), torch.ones(50, 3, 16, 16), -torch.ones(50, 3, 16, 16)])
        result = photometric(images, draws(300), strong)
        assert result.isfinite().all()
        assert result.abs().max() <= 1 + 1e-6

    def test_autocast_changes_nothing(self):
        images = colours(8)
        expected = photometric(images, draws(8), config(DINO))
        with torch.autocast("cpu", torch.bfloat16):
            result = photometric(images, draws(8), config(DINO))
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)

    def test_no_value_is_waited_for(self):
        """A meta tensor has none: whoever reads one, or lets it decide a shape, is refused."""
        images = torch.empty(4, 3, 16, 16, device="meta")
        drawn = Draws(0, torch.empty(4, dtype=torch.int64, device="meta"))
        assert photometric(images, drawn, config(DINO)).shape == images.shape

    def test_images_smaller_than_the_reflected_border_are_refused(self):
        assert photometric(colours(1, 5, 5), draws(1), config(DINO)).shape == (1, 3, 5, 5)
        with pytest.raises(ValueError, match=r"16 x 4 pixels.*kernel 9: a side needs 5"):
            photometric(colours(1, 16, 4), draws(1), config(DINO))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_gpu_agrees_and_never_waits(self):
        images, drawn = colours(64), draws(64)
        on_gpu = Draws(0, drawn.index.cuda()), config(DINO)
        moved = images.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = photometric(moved, *on_gpu)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = photometric(images, drawn, config(DINO))
        different = ((result.cpu() - expected).abs() > 1e-4).float().mean()
        assert different < 1e-4  # where rounding decides whether a value is solarised


class TestConfig:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("brightness", -0.1),
            ("contrast", -0.1),
            ("saturation", float("nan")),
            ("hue", 0.6),
            ("jitter_probability", 1.1),
            ("gray_probability", -0.1),
            ("blur_probability", 2),
            ("blur_kernel", 8),
            ("blur_kernel", -1),
            ("blur_sigma", [2.0, 0.1]),
            ("blur_sigma", [0.0, 2.0]),
            ("blur_sigma", [1.0]),
            ("solarize_probability", 20),
            ("solarize_threshold", 128),
            ("sharpness", 1.0),
        ],
    )
    def test_a_wrong_value_is_named(self, key, value):
        with pytest.raises(ValidationError, match=key):
            config(**{key: value})

    @pytest.mark.parametrize("key", OFF)
    def test_there_are_no_defaults(self, key):
        with pytest.raises(ValidationError, match=key):
            PhotometricConfig(**{name: value for name, value in OFF.items() if name != key})

    def test_yaml_lists_are_taken(self):
        assert config(blur_sigma=[0.1, 2.0]).blur_sigma == (0.1, 2.0)
