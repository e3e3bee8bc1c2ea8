"""Noise levels, EDM's sampler on them, and all processes seen as noise levels."""

import math

import pytest
import torch

from selfdistill.diffusion.config import ChurnConfig, GridConfig, SolverConfig
from selfdistill.diffusion.discrete import LINEAR
from selfdistill.diffusion.levels import heun, level_at, loss_weight, respaced_levels
from selfdistill.diffusion.process import PROCESSES, Chain, Flow, Levels
from selfdistill.draws import Draws

MEAN, DEVIATION = 0.3, 0.5
TABLE_5 = {"amount": 40, "start": 0.05, "end": 50, "noise": 1.003}


def exact(x, sigma):
    """What N(MEAN, DEVIATION^2) is expected to be, seen with noise of a level."""
    share = DEVIATION**2 / (DEVIATION**2 + sigma**2)
    return MEAN + share * (x - MEAN)


def solver(num_steps, **values):
    return SolverConfig(
        solver="edm", num_steps=num_steps, guidance=1, guidance_interval=(0, 1), **values
    )


def test_levels_are_those_of_the_public_implementation():
    shares = [0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1]
    expected = [0.002, 0.016721, 0.085087, 0.965417, 2.515219, 5.838948, 24.408342, 80]
    found = level_at(torch.tensor(shares, dtype=torch.float64)).tolist()
    assert found == pytest.approx(expected, rel=1e-4)
    levels = respaced_levels(18)
    assert (levels[0], levels[-1]) == pytest.approx((80, 0.002))
    assert levels[7] == pytest.approx(float(level_at(torch.tensor(10 / 17).double())))
    with pytest.raises(ValueError, match="or name the `levels`"):
        respaced_levels(1)


def test_weights_are_those_of_the_public_implementation():
    sigma = torch.tensor([0.5, 1, 2.5, 80, 0.002], dtype=torch.float64)
    assert loss_weight(sigma).tolist() == pytest.approx([8, 5, 4.16, 4.00016, 250_004], rel=1e-5)


def deviation_of(num_steps, **values):
    eps = torch.tensor([[0.0], [1.0]], dtype=torch.float64)  # each step is affine
    x = heun(exact, eps, respaced_levels(num_steps), **values).squeeze()
    # The largest level has not lost the mean: what it starts from is off by MEAN / 80.
    return float(x[1] - x[0])


def test_the_sampler_is_of_second_order_on_gaussian_data():
    goal = deviation_of(2048)
    assert goal == pytest.approx(DEVIATION, abs=1e-3)
    errors = [abs(deviation_of(num) - goal) for num in (32, 64, 128)]
    assert 3 < errors[0] / errors[1] < 5
    assert 3 < errors[1] / errors[2] < 5


def test_churn_draws_gaussian_data_too():
    draws = Draws(0, torch.arange(20_000))
    churn = ChurnConfig(**TABLE_5)

    def draw(number):
        return draws.normal(f"churn_{number}", 1).double()

    eps = draws.normal("eps", 1).double()
    x = heun(exact, eps, respaced_levels(256), churn, draw)
    still = heun(exact, eps, respaced_levels(256))
    assert x.mean() == pytest.approx(MEAN, abs=0.02)
    assert x.std() == pytest.approx(DEVIATION, rel=0.03)
    assert abs(torch.corrcoef(torch.stack((x, still)).squeeze(-1))[0, 1]) < 0.9


def test_one_level_returns_what_is_expected_of_noise():
    process, eps = PROCESSES["noise_levels"], torch.randn(4, 3)
    found = process.solve(exact, eps, solver(1, levels=(2.5,)), Draws(0, torch.arange(4)))
    torch.testing.assert_close(found, exact(2.5 * eps, 2.5))
    assert solver(1, levels=(2.5,)).num_evaluations == 1
    assert solver(18).num_evaluations == 35


def test_steps_join_and_lead_to_clean_data():
    process, x, x0 = Levels(), torch.randn(4, 3), torch.randn(4, 3)
    t, after = torch.full((4,), 2.0), torch.full((4,), 0.5)
    x_next = process.step(x, x0, t, after)
    torch.testing.assert_close(x_next, x + (after - t)[:, None] * (x - x0) / t[:, None])
    torch.testing.assert_close(process.joining(x, x_next, t, after), x0)
    torch.testing.assert_close(process.step(x, x0, t, torch.zeros(4)), x0)


def test_the_second_order_weight_is_exact_for_data_linear_in_the_log_snr():
    """Clean data a + b L: the exponential integrator of dx/dL = D - x, by quadrature."""
    process, t, after = Levels(), 3.0, 0.7
    h = math.log(t / after)
    tau = torch.linspace(0, h, 200_001, dtype=torch.float64)
    exact_share = torch.trapezoid((tau - h).exp() * tau / h, tau) / (1 - math.exp(-h))
    assert process.end_weight(t, after) == pytest.approx(float(exact_share), rel=1e-6)
    assert process.extrapolation(9.0, t, after) == pytest.approx(
        process.end_weight(t, after) * h / math.log(3)
    )
    assert process.extrapolation(9.0, t, process.end) == 0


@pytest.mark.parametrize("process", [Chain(LINEAR), Flow(), Levels()])
def test_every_process_is_one_of_noise_levels(process):
    """A state is x0 + level eps, scaled; the network's target speaks of x0."""
    sigma = torch.tensor([0.03, 0.7, 2.5, 20.0], dtype=torch.float64)
    t, scale, level = process.at_level(sigma)
    assert torch.allclose(level.double(), sigma, rtol=0.03)
    x0, eps = torch.randn(2, 4, 5, dtype=torch.float64)
    x_t = process.noised(x0, eps, t)
    torch.testing.assert_close(
        x_t, scale[:, None] * (x0 + level[:, None] * eps), rtol=1e-5, atol=1e-5
    )
    found = process.clean(x_t, process.target(x0, eps), t)
    torch.testing.assert_close(found, x0, rtol=1e-5, atol=1e-5)


def test_what_is_of_another_process_is_refused():
    levels, draws = Levels(), Draws(0, torch.arange(1))
    for values in ({"times": (3, 1)}, {"timestep_shift": 0.5}, {"last_step": 0.1}):
        with pytest.raises(ValueError, match="knows noise levels"):
            levels.times(GridConfig(num_steps=2, **values))
    with pytest.raises(ValueError, match="decreasing, got"):
        levels.times(GridConfig(num_steps=2, levels=(1.0, 2.0)))
    with pytest.raises(ValueError, match="levels: 1 are given, num_steps is 2"):
        GridConfig(num_steps=2, levels=(1.0,))
    for process, text in ((Chain(LINEAR), "discrete"), (Flow(), "flow")):
        with pytest.raises(ValueError, match=f"knows {text} times"):
            process.solve(exact, torch.zeros(1, 1), solver(2), draws)
        with pytest.raises(ValueError, match="levels"):
            process.times(GridConfig(num_steps=2, levels=(2.0, 1.0)))
    with pytest.raises(ValueError, match="churn means nothing for solver 'ddim'"):
        SolverConfig(
            solver="ddim", num_steps=2, guidance=1, guidance_interval=(0, 1), churn=TABLE_5
        )
