import math
from itertools import pairwise

import pytest
import torch

from selfdistill.diffusion.config import SolverConfig
from selfdistill.diffusion.guidance import guide
from selfdistill.diffusion.solvers import SOLVERS, shift_time, time_points

ORDERS = {"euler": 1, "heun": 2, "ab2": 2}


@pytest.mark.parametrize("shift", [0.3, 1.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_halving_the_step_divides_the_error_as_the_order_says(name, shift):
    """dz/dt = z cos(3 t) has z(1) = z(0) exp(sin(3) / 3), on even and on uneven grids."""
    z = torch.ones(1, dtype=torch.float64)
    exact = math.exp(math.sin(3) / 3)
    errors = [
        abs(
            float(SOLVERS[name](lambda z, t: z * math.cos(3 * t), z, time_points(n, shift))) - exact
        )
        for n in (256, 512)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.1)


def test_adams_bashforth_is_exact_where_the_velocity_is_linear_in_time_but_for_its_first_step():
    """Extrapolation through two points is exact on a line, however uneven the steps are."""
    times = [0.0, 0.1, 0.15, 0.4, 0.9, 1.0]
    z = SOLVERS["ab2"](lambda z, t: torch.tensor(2 * t, dtype=torch.float64), torch.zeros(1), times)
    first = 2 * times[0] * times[1]  # Euler's
    assert float(z) == pytest.approx(first + times[-1] ** 2 - times[1] ** 2)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_every_solver_is_exact_on_a_straight_path(name, shift):
    """The velocity of one noise and one datum is constant, so any number of steps lands on z0."""
    z0, eps = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25])
    z = SOLVERS[name](lambda state, t: z0 - eps, eps, time_points(7, shift))
    torch.testing.assert_close(z, z0)


@pytest.mark.parametrize("name", SOLVERS)
def test_nfe_is_what_a_solver_really_takes(name):
    """LightningDiT's "250 steps" are 250 time points: 249 updates."""
    config = SolverConfig(
        solver=name, num_steps=249, timestep_shift=0.3, guidance=1.0, guidance_interval=(0.0, 1.0)
    )
    calls = []
    times = time_points(config.num_steps, config.timestep_shift)
    SOLVERS[name](lambda z, t: calls.append(t) or torch.zeros(1), torch.zeros(1), times)
    assert len(calls) == config.num_evaluations == (498 if name == "heun" else 249)
    assert calls[0] == 0
    assert len(times) == 250


def test_guidance_acts_from_the_start_of_its_interval_to_its_end():
    config = SolverConfig(
        solver="heun", num_steps=4, timestep_shift=1.0, guidance=2.0, guidance_interval=(0.25, 1.0)
    )
    assert [config.guides_at(t) for t in (0.0, 0.24, 0.25, 1.0)] == [False, False, True, True]


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_shift_fixes_the_ends_and_a_small_one_dwells_near_noise(shift):
    times = time_points(100, shift)
    assert times[0] == 0
    assert times[-1] == pytest.approx(1)
    assert all(a < b for a, b in pairwise(times))
    assert (times[50] < 0.5) == (shift < 1)


def test_shift_by_s_undoes_shift_by_its_inverse():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(shift_time(t, 0.3), 1 / 0.3), t)


def test_guidance_1_is_the_conditional_and_0_the_unconditional_prediction():
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    assert torch.equal(guide(c, u, 1.0), c)
    assert torch.equal(guide(c, u, 0.0), u)
    assert torch.equal(guide(c, u, 3.0), u + 3 * (c - u))
