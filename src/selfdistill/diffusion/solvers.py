"""Solvers of the probability-flow ODE dz/dt = v(z, t) from t = 0 (noise) to t = 1 (data)."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""v(z, t): the state (N, ...) and one flow time for all of it, to the velocity (N, ...)."""
Solver = Callable[[Velocity, Tensor, list[float]], Tensor]
"""Velocity, state at times[0] (N, ...), and increasing flow times, to the state at times[-1]."""


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Return t' = s t / (1 + (s - 1) t), which fixes 0 and 1 (Esser et al., arXiv:2403.03206).

    Args:
        t: Flow times in [0, 1].
        shift: s > 0. SD3 writes it for reversed time; its alpha is 1 / s here.
    """
    return shift * t / (1 + (shift - 1) * t)


def time_points(num_steps: int, shift: float = 1.0, last_step: float | None = None) -> list[float]:
    """Return the num_steps + 1 shifted times from 0 to 1, computed in float64.

    Args:
        num_steps: Steps.
        shift: Of `shift_time`.
        last_step: Length of the last step before the shift, the others being equal; None: all are.
    """
    on_cpu: Any = {"dtype": torch.float64, "device": "cpu"}  # whatever the default is
    if last_step is None:
        even = torch.linspace(0, 1, num_steps + 1, **on_cpu)
    else:
        before = torch.linspace(0, 1 - last_step, num_steps, **on_cpu)
        even = torch.cat((before, before.new_ones(1)))
    return shift_time(even, shift).tolist()


def euler(velocity: Velocity, eps: Tensor, times: list[float]) -> Tensor:
    """Integrate with z += (t_next - t) v(z, t), first order."""
    z = eps
    for t, t_next in pairwise(times):
        z = z + (t_next - t) * velocity(z, t)
    return z


def heun(velocity: Velocity, eps: Tensor, times: list[float]) -> Tensor:
    """Integrate with the mean of the velocities at both ends of a step, second order.

    Two evaluations a step, the last one at t = 1 included: a velocity has no singularity there,
    unlike EDM's derivative at sigma = 0 (Karras et al., arXiv:2206.00364, Algorithm 1).
    """
    z = eps
    for t, t_next in pairwise(times):
        h = t_next - t
        v = velocity(z, t)
        z = z + h / 2 * (v + velocity(z + h * v, t_next))
    return z


def adams_bashforth_2(velocity: Velocity, eps: Tensor, times: list[float]) -> Tensor:
    """Integrate with the velocity extrapolated from this step and the one before, second order.

    z += h ((1 + r / 2) v_k - r / 2 v_{k-1}),   r = h / (previous h); the first step is Euler's.
    """
    z, h_before, v_before = eps, 0.0, None
    for t, t_next in pairwise(times):
        h = t_next - t
        v = velocity(z, t)
        if v_before is None:
            z = z + h * v
        else:
            r = h / h_before
            z = z + h * ((1 + r / 2) * v - r / 2 * v_before)
        h_before, v_before = h, v
    return z


def euler_maruyama(
    velocity: Velocity, eps: Tensor, times: list[float], noise: Callable[[int], Tensor]
) -> Tensor:
    """Integrate the reverse stochastic equation with diffusion 2 (1 - t), first order.

    With the score -eps / (1 - t) and eps = z - t v of the linear path, REPA's sampler (Yu et al.,
    arXiv:2410.06940; official code, `euler_maruyama_sampler`) is

        z += h (v - eps) + sqrt(2 (1 - t) h) noise,    the last step without the noise

    Args:
        velocity: v(z, t).
        eps: State at times[0], (N, ...).
        times: Increasing flow times.
        noise: Standard normal noise (N, ...) of a step, by its number.

    Returns:
        The state at times[-1].
    """
    z = eps
    for k, (t, t_next) in enumerate(pairwise(times)):
        h = t_next - t
        v = velocity(z, t)
        z = z + h * (v - (z - t * v))
        if k < len(times) - 2:
            z = z + math.sqrt(2 * (1 - t) * h) * noise(k)
    return z


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "heun": heun,
    "ab2": adams_bashforth_2,
}
