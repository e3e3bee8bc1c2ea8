"""Both processes: grids, steps and weights of second order, against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from selfdistill.diffusion.config import GridConfig, SolverConfig
from selfdistill.diffusion.discrete import (
    LINEAR,
    ddim,
    ddpm,
    diffuse,
    dpm_2,
    respaced_times,
    variance_bound,
)
from selfdistill.diffusion.process import Chain, Flow, as_times, pairs
from selfdistill.diffusion.solvers import euler_maruyama, time_points
from selfdistill.draws import Draws

ALPHA, SIGMA = LINEAR.alpha, LINEAR.sigma
CHAIN, FLOW = Chain(LINEAR), Flow()


def grid(num_steps, **values):
    return GridConfig(num_steps=num_steps, **values)


def solver(name, num_steps, **values):
    return SolverConfig(
        solver=name, num_steps=num_steps, guidance=1, guidance_interval=(0, 1), **values
    )


def test_grids_are_those_of_the_samplers():
    assert CHAIN.times(grid(10)) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert FLOW.times(grid(4)) == [0, 0.25, 0.5, 0.75]
    shifted = time_points(10, 0.3)[:-1]
    assert FLOW.times(grid(10, timestep_shift=0.3)) == shifted
    # REPA's: 250 points from noise to 0.04 of it, then the end.
    points = FLOW.times(grid(250, last_step=0.04))
    assert len(points) == 250
    assert points[0] == 0
    assert points[-1] == pytest.approx(0.96)
    assert np.allclose(np.diff(points), 0.96 / 249)
    assert CHAIN.times(grid(3, times=(900, 17, 0))) == [900, 17, 0]


@pytest.mark.parametrize("process", [CHAIN, FLOW])
@pytest.mark.parametrize("num_steps", [16, 20, 64])
def test_halved_grids_are_nested_and_keep_the_noisiest_time(process, num_steps):
    whole = process.times(grid(num_steps))
    half = process.times(grid(num_steps, halvings=1))
    quarter = process.times(grid(num_steps, halvings=2))
    assert half == whole[::2]
    assert quarter == whole[::4]
    assert grid(num_steps, halvings=2).num_times == len(quarter)


@pytest.mark.parametrize(
    ("process", "values", "text"),
    [
        (CHAIN, {"num_steps": 10, "timestep_shift": 0.3}, "linear path"),
        (CHAIN, {"num_steps": 10, "last_step": 0.04}, "linear path"),
        (CHAIN, {"num_steps": 2, "times": (1000, 0)}, "0..999"),
        (FLOW, {"num_steps": 2, "times": (900, 0)}, "of a chain"),
    ],
)
def test_a_grid_of_the_other_process_is_refused(process, values, text):
    with pytest.raises(ValueError, match=text):
        process.times(GridConfig(**values))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_steps": 3, "times": (9, 0)}, "num_steps is 3"),
        ({"num_steps": 10, "halvings": 2}, "cannot be halved 2 times"),
    ],
)
def test_a_grid_that_contradicts_itself_is_refused(values, text):
    with pytest.raises(ValueError, match=text):
        GridConfig(**values)


@pytest.mark.parametrize(("process", "name"), [(CHAIN, "euler"), (FLOW, "ddim"), (FLOW, "ddpm")])
def test_a_solver_of_the_other_process_is_refused(process, name):
    with pytest.raises(ValueError, match="take one of"):
        process.solve(lambda x, t: x, torch.zeros(1, 2), solver(name, 4), Draws(0, torch.arange(1)))


@pytest.mark.parametrize(
    ("process", "s", "t"), [(CHAIN, 999, 400), (CHAIN, 17, -1), (FLOW, 0.0, 0.3), (FLOW, 0.8, 1.0)]
)
def test_the_joining_prediction_is_what_the_step_was_taken_by(process, s, t):
    x, prediction = torch.randn(2, 3, 4, dtype=torch.float64)
    times = [as_times([value]).expand(3) for value in (s, t)]
    x_next = process.step(x, prediction, *times)
    torch.testing.assert_close(process.joining(x, x_next, *times), prediction)


@pytest.mark.parametrize(
    ("num_steps", "mean", "last"),
    [(4, 0.60, 0.90), (10, 0.54, 0.87), (20, 0.52, 0.83), (50, 0.51, 0.78)],
)
def test_weights_of_the_papers_equation_12(num_steps, mean, last):
    weights = [CHAIN.midpoint_weight(*pair) for pair in pairs(CHAIN, grid(num_steps))]
    assert np.mean(weights) == pytest.approx(mean, abs=0.006)
    assert weights[-1] == pytest.approx(last, abs=0.006)
    with pytest.raises(ValueError, match="discrete times"):
        FLOW.midpoint_weight(0.0, 0.5)


def test_extrapolations_on_dits_grid_of_ten():
    times = [*CHAIN.times(grid(10)), CHAIN.end]
    k = [CHAIN.extrapolation(*times[i : i + 3]) for i in range(9)]
    mu = [value / (1 + value) for value in k]
    assert mu[-1] == 0  # the last step is infinitely long
    assert mu[-2::-1] == pytest.approx(
        [0.539, 0.369, 0.318, 0.293, 0.281, 0.276, 0.274, 0.272], abs=6e-4
    )
    assert FLOW.extrapolation(0.0, 0.1, 0.2) == pytest.approx(0.5)
    assert FLOW.extrapolation(0.0, 0.1, 0.3) == pytest.approx(1.0)


def test_dpm_2_is_of_second_order_where_ddim_is_of_first():
    """Of one Gaussian dimension with the exact noise; errors against 1000 steps of DDIM."""
    mean, variance = 0.4, 0.3

    def noise(x, n):
        return SIGMA[n] / (ALPHA[n] ** 2 * variance + SIGMA[n] ** 2) * (x - ALPHA[n] * mean)

    x = torch.tensor([[1.3]], dtype=torch.float64)

    def error(sample, num_steps):
        times = [n for n in respaced_times(num_steps) if n >= 100]
        return abs(float(sample(noise, x, times) - exact))

    exact = ddim(noise, x, list(range(999, 99, -1)))
    assert error(dpm_2, 11) < error(ddim, 21) / 2  # as many evaluations
    assert error(dpm_2, 11) / error(dpm_2, 21) > 3.5
    assert error(ddim, 11) / error(ddim, 21) < 2.1


def test_ancestral_samples_of_a_single_point_reach_it():
    point = torch.tensor([[0.3, -0.7]], dtype=torch.float64)

    def output(x, n):
        eps = (x - ALPHA[n] * point) / SIGMA[n]
        return torch.cat((eps, torch.full_like(eps, -1.0)), dim=1)

    eps = torch.randn(1, 2, dtype=torch.float64)
    x0 = ddpm(output, eps, respaced_times(20), lambda k: torch.randn(1, 2, dtype=torch.float64))
    torch.testing.assert_close(x0, point)


def test_an_ancestral_step_has_the_moments_of_the_posterior():
    """With times n and n - 1, values of -1 are the posterior's variance, values of 1 beta."""
    n, x0 = 500, torch.tensor([[0.4]], dtype=torch.float64)
    x = torch.tensor([[1.1]], dtype=torch.float64)
    before, after = ALPHA[n - 1] ** 2, ALPHA[n] ** 2
    beta = 1 - after / before
    mean = (
        before.sqrt() * beta / (1 - after) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - after) * x
    )

    for value, variance in ((-1.0, beta * (1 - before) / (1 - after)), (1.0, beta)):
        seen = []

        def output(z, time, seen=seen, value=value):
            seen.append(z)
            eps = (x - ALPHA[n] * x0) / SIGMA[n]
            return torch.cat((eps, torch.full_like(eps, value)), dim=1)

        ddpm(output, x, [n, n - 1], lambda k: torch.ones(1, 1, dtype=torch.float64))
        torch.testing.assert_close(seen[1], mean + variance.sqrt())


def test_ancestral_sampling_needs_a_predicted_variance():
    with pytest.raises(ValueError, match="learn_sigma"):
        ddpm(lambda x, n: x, torch.zeros(1, 2), [999, 0], lambda k: torch.zeros(1, 2))


@pytest.mark.parametrize("n", [1, 250, 999])
def test_the_variational_bound_is_a_divergence(n):
    x0, eps, predicted, values = torch.randn(4, 1, 5, dtype=torch.float64)
    time = torch.tensor([n])
    x = diffuse(x0, eps, time)
    before, after = ALPHA[n - 1] ** 2, ALPHA[n] ** 2
    beta = 1 - after / before
    c0, c = before.sqrt() * beta / (1 - after), (1 - beta).sqrt() * (1 - before) / (1 - after)
    low = beta * (1 - before) / (1 - after)
    guess = (x - SIGMA[n] * predicted) / ALPHA[n]
    log_variance = (values + 1) / 2 * beta.log() + (1 - values) / 2 * low.log()
    expected = kl_divergence(
        Normal(c0 * x0 + c * x, low.sqrt()), Normal(c0 * guess + c * x, (log_variance / 2).exp())
    ).mean() / math.log(2)
    found = variance_bound(x0, x, time, predicted, values)
    torch.testing.assert_close(found, expected[None])


def test_the_bound_at_the_first_time_is_a_probability_of_cells():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    x = torch.full((1, 256), 0.2, dtype=torch.float64)
    time, zero = torch.tensor([0]), torch.zeros(1, 256, dtype=torch.float64)
    first = x[:, :1], time, zero[:, :1], zero[:, :1]
    bits = torch.cat([variance_bound(level.expand(1, 1), *first) for level in levels])
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-6)
    assert abs(int(bits.argmin()) - int((0.2 / float(ALPHA[0]) + 1) * 127.5)) <= 1


def test_the_reverse_equation_keeps_the_law_of_the_data():
    """Of a Gaussian with the exact velocity: mean and deviation after 200 steps, 20,000 paths."""
    mean, std = 0.5, 0.7

    def velocity(z, t):
        variance = (t * std) ** 2 + (1 - t) ** 2
        covariance = t * std**2 - (1 - t)  # of z0 - eps with z
        return mean + covariance / variance * (z - t * mean)

    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(201, 20_000, generator=generator)
    points = [*time_points(200, last_step=0.04)]
    z = euler_maruyama(velocity, draw[0], points, lambda k: draw[k + 1])
    assert float(z.mean()) == pytest.approx(mean, abs=0.02)
    assert float(z.std()) == pytest.approx(std, abs=0.02)


def test_the_last_stochastic_step_is_taken_without_noise():
    drawn = []
    euler_maruyama(
        lambda z, t: z, torch.zeros(1), time_points(5), lambda k: drawn.append(k) or torch.zeros(1)
    )
    assert drawn == [0, 1, 2, 3]
