"""The chain of 1000 times: grids, and samplers against closed forms and the public ones."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from selfdistill.diffusion.discrete import (
    LINEAR,
    SCALED_LINEAR,
    ddim,
    ddim_step,
    diffuse,
    dpm_2,
    log_snr_step,
    plms_2,
    plms_4,
    respaced_times,
    second_order_weight,
)
from selfdistill.diffusion.guidance import guide
from selfdistill.networks.dit import DiT
from selfdistill.networks.dit_config import DiTConfig

ALPHA, SIGMA = LINEAR.alpha, LINEAR.sigma
GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens" / "dit.safetensors"
# Gaussian data in 64 independent dimensions, whose noise is known exactly.
MEAN = 0.3 * torch.tensor(np.random.RandomState(0).randn(64))
VARIANCE = torch.tensor(np.geomspace(1.5, 1e-4, 64))


def exact_noise(x, n):
    return SIGMA[n] / (ALPHA[n] ** 2 * VARIANCE + SIGMA[n] ** 2) * (x - ALPHA[n] * MEAN)


def frechet(sampler, num_steps, noise=exact_noise):
    """Squared Frechet distance of the samples to the data; every step is affine in each dimension,
    so two states tell the whole map."""
    times = respaced_times(num_steps)
    at_0, at_1 = (
        sampler(noise, torch.full((1, 64), start, dtype=torch.float64), times) for start in (0, 1)
    )
    std = (at_1 - at_0).abs()
    return float((at_0 - MEAN).square().sum() + (std - VARIANCE.sqrt()).square().sum())


def test_the_schedule_ends_where_dits_does():
    assert ALPHA[999] ** 2 == pytest.approx(4.036e-5, rel=1e-3)
    assert ALPHA[0] ** 2 == pytest.approx(0.9999)
    torch.testing.assert_close(ALPHA.square() + SIGMA.square(), torch.ones_like(ALPHA))


@pytest.mark.parametrize(
    ("num_steps", "times"),
    [
        (4, [999, 666, 333, 0]),
        (5, [999, 749, 500, 250, 0]),
        (8, [999, 856, 714, 571, 428, 285, 143, 0]),
        (10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        (
            20,
            [999, 946, 894, 841, 789, 736, 684, 631, 578, 526, 473, 421, 368, 315, 263, 210, 158,
             105, 53, 0],
        ),
    ],
)  # fmt: skip
def test_grids_are_those_of_the_public_sampler(num_steps, times):
    assert respaced_times(num_steps) == times


@given(num_steps=st.integers(2, 1000))
def test_grids_have_both_ends_and_decrease(num_steps):
    times = respaced_times(num_steps)
    assert len(times) == num_steps
    assert (times[0], times[-1]) == (999, 0)
    assert all(a > b for a, b in pairwise(times))


@pytest.mark.parametrize("num_steps", [0, 1, 1001])
def test_grids_of_too_few_or_many_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps must be in"):
        respaced_times(num_steps)


@pytest.mark.parametrize("times", [[], [0, 999], [500, 500], [1000, 0], [3, -1]])
def test_times_that_do_not_decrease_are_refused(times):
    for sampler in (ddim, plms_2):
        with pytest.raises(ValueError, match="times must be"):
            sampler(exact_noise, MEAN[None], times)


def test_a_step_with_the_true_noise_leads_to_the_same_data_at_any_time():
    x0, eps = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    n, n_next = torch.tensor([999, 500, 3]), torch.tensor([700, 0, -1])
    found = ddim_step(diffuse(x0, eps, n), eps, n, n_next)
    torch.testing.assert_close(found[:2], diffuse(x0, eps, n_next)[:2])
    torch.testing.assert_close(found[2], x0[2])


@pytest.mark.parametrize(
    ("num_steps", "error"), [(4, 3.401), (10, 0.6262), (20, 0.1785), (50, 0.0330), (250, 0.0019)]
)
def test_ddim_of_gaussian_data_is_off_by_what_was_computed_independently(num_steps, error):
    assert frechet(ddim, num_steps) == pytest.approx(error, abs=6e-5 if error < 1 else 6e-4)


def test_the_second_order_sampler_gains_an_order_on_gaussian_data():
    """In the distance, a square: twice the steps take DDIM to a quarter, and this one further."""
    for num_steps in (10, 20, 50):
        assert frechet(plms_2, num_steps) < 0.15 * frechet(ddim, num_steps)


def test_the_second_order_sampler_is_exact_for_noise_that_is_linear_in_the_log_snr():
    """But for its first and last step, which are DDIM's."""
    half = torch.log(ALPHA / SIGMA)
    times, start = [600, 450, 300, 200, 120], torch.ones(1, 1, dtype=torch.float64)

    def noise(x, n):
        return (0.3 + 0.7 * half[n]).expand_as(x)

    def exact(x, n, n_next):
        """Integrate dx/dL of the ODE by fine steps, in terms of u = x / alpha."""
        steps = torch.linspace(float(half[n]), float(half[n_next]), 100_001, dtype=torch.float64)
        speed = -torch.exp(-steps) * (0.3 + 0.7 * steps)  # du/dL = -e^-L eps
        u = x / ALPHA[n] + torch.trapezoid(speed, steps)
        return ALPHA[n_next] * u

    def by_ddim(x, n, n_next):
        return ddim_step(x, noise(x, n), torch.tensor([n]), torch.tensor([n_next]))

    x = by_ddim(start, 600, 450)
    for n, n_next in pairwise(times[1:]):
        x = exact(x, n, n_next)
    x = by_ddim(x, 120, -1)
    torch.testing.assert_close(plms_2(noise, start, times), x, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(ddim(noise, start, times), x, atol=1e-3)


def test_the_second_order_weight_of_dits_ten_steps():
    weights = [second_order_weight(log_snr_step(n, k)) for n, k in pairwise(respaced_times(10))]
    expected = [0.413, 0.423, 0.433, 0.442, 0.449, 0.454, 0.452, 0.436, 0.248]
    assert weights == pytest.approx(expected, abs=6e-4)


@given(h=st.floats(1e-9, 30))
def test_the_second_order_weight_falls_from_a_half(h):
    weight = second_order_weight(h)
    assert 0 < weight <= 0.5
    assert weight == pytest.approx(0.5 - h / 12, abs=h**3 / 300 + 1e-9)
    assert weight * h == pytest.approx(1 - h / math.expm1(h), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("h", [0.0, -1.0])
def test_a_step_that_leads_nowhere_has_no_weight(h):
    with pytest.raises(ValueError, match="must lead to cleaner times"):
        second_order_weight(h)


@pytest.mark.skipif(not GOLDENS.is_file(), reason=f"{GOLDENS} is absent")
@pytest.mark.parametrize("num_steps", [10, 20, 250])
def test_guided_trajectories_are_those_of_the_public_implementation(num_steps):
    """To float32's rounding: values reach 600, and the golden states were rounded at every step."""
    tensors = load_file(GOLDENS)
    network = DiT(
        DiTConfig(
            name="dit", latent_size=8, latent_channels=4, patch_size=2, width=64, depth=3,
            num_heads=4, num_classes=10, learn_sigma=True,
        )
    )  # fmt: skip
    network.load_state_dict(
        {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
    )
    labels, eps = tensors["cfg.y"], tensors["x"][:2]

    def guided(x, times):
        conditional, unconditional = network(torch.cat((x, x)), times, labels).chunk(2)
        return guide(conditional, unconditional, 1.5, num_channels=3)

    with torch.no_grad():
        out = guided(eps, tensors["cfg.t"])
        assert (out - tensors["cfg.out"][:2]).abs().max() < 1e-5
        x = ddim(lambda x, n: guided(x, torch.full((4,), n))[:, :4], eps, respaced_times(num_steps))
    expected = tensors[f"ddim{num_steps}.out"]
    assert (x - expected).abs().max() < 1e-5 * expected.abs().max()


class TestStableDiffusion:
    """Its schedule and samplers, against diffusers', of a noise that is no closed form's."""

    TIMES = {10: range(901, 0, -100), 9: range(889, 0, -111), 20: range(951, 0, -50)}

    @staticmethod
    def noise(x, n):
        return torch.sin(x + n / 300) + x / 2

    def by(self, scheduler, num_steps, eps):
        scheduler.set_timesteps(num_steps)
        x = eps * scheduler.init_noise_sigma
        for n in scheduler.timesteps:
            x = scheduler.step(self.noise(x, int(n)), n, x).prev_sample
        return x

    @pytest.fixture
    def settings(self):
        """The published scheduler's configuration."""
        return {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading",
        }  # fmt: skip

    @pytest.mark.parametrize("num_steps", [9, 10, 20])
    def test_ddim_is_diffusers(self, num_steps, settings):
        from diffusers import DDIMScheduler

        eps = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        expected = self.by(DDIMScheduler(**settings, clip_sample=False), num_steps, eps)
        found = ddim(self.noise, eps, list(self.TIMES[num_steps]), SCALED_LINEAR)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("num_steps", [9, 10, 20])
    def test_plms_is_diffusers(self, num_steps, settings):
        from diffusers import PNDMScheduler

        eps = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        expected = self.by(PNDMScheduler(**settings, skip_prk_steps=True), num_steps, eps)
        found = plms_4(self.noise, eps, list(self.TIMES[num_steps]), SCALED_LINEAR)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_plms_of_one_time_is_ddims_step(self):
        eps = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(plms_4(self.noise, eps, [500]), ddim(self.noise, eps, [500]))

    def test_dpm_solver_converges_to_the_exact_flow_that_ends_at_time_0(self):
        """That of Gaussian data scales each dimension by its deviations' ratio."""
        schedule, variance = SCALED_LINEAR, VARIANCE + 0.05
        alpha, sigma = schedule.alpha, schedule.sigma

        def noise(x, n):
            return sigma[n] / (alpha[n] ** 2 * variance + sigma[n] ** 2) * x

        def deviation(n):
            return (alpha[n] ** 2 * variance + sigma[n] ** 2).sqrt()

        def error(num_steps):
            times = [round(999 * (1 - k / num_steps)) for k in range(num_steps)]
            start = torch.ones(1, 64, dtype=torch.float64)
            exact = deviation(0) / deviation(999)
            return float((dpm_2(noise, start, times, schedule) - exact).square().sum())

        assert error(10) > 8 * error(40)
        assert error(40) > 8 * error(200)
