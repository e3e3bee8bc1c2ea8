import math
from itertools import pairwise

import pytest
import torch

from selfdistill.diffusion.guidance import guide
from selfdistill.diffusion.solvers import SOLVERS, euler, shift_time, time_points


def test_euler_has_first_order_on_an_ode_with_a_known_solution():
    """dz/dt = z has z(1) = e z(0); halving the step halves the error."""
    z = torch.ones(1, dtype=torch.float64)
    errors = [
        abs(float(euler(lambda state, _: state, z, time_points(n))) - math.e) for n in (64, 128)
    ]
    assert 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_every_solver_is_exact_on_a_straight_path(name, shift):
    """The velocity of one noise and one datum is constant, so any number of steps lands on z0."""
    z0, eps = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25])
    z = SOLVERS[name](lambda state, t: z0 - eps, eps, time_points(7, shift))
    torch.testing.assert_close(z, z0)


def test_num_steps_counts_updates():
    calls = []
    euler(lambda state, t: calls.append(t) or torch.zeros(1), torch.zeros(1), time_points(249))
    assert len(calls) == 249
    assert calls[0] == 0


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
