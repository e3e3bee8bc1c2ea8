"""Noise levels: data with noise of a growing deviation added, and EDM's sampler.

    x = x0 + sigma eps,    sigma from 0.002, almost clean, to 80, almost noise; 0 is clean data

as in EDM (Karras et al., arXiv:2206.00364), whose networks return the clean data expected.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from selfdistill.diffusion.config import ChurnConfig

SMALLEST, LARGEST = 0.002, 80.0
_RHO = 7.0

Denoise = Callable[[Tensor, float], Tensor]
"""D(x; sigma): the state (N, ...) and one noise level for all of it, to clean data (N, ...)."""


def level_at(u: Tensor) -> Tensor:
    """Return the noise level at a share of the way from the smallest to the largest.

    EDM's Eq. 5, by which a sampler of N steps has those at 1, (N - 2) / (N - 1), ..., 0; SiDA draws
    its generator's at a uniform share of at most 0.8 (arXiv:2410.14919).

    Args:
        u: Shares in [0, 1], any shape.
    """
    low, high = SMALLEST ** (1 / _RHO), LARGEST ** (1 / _RHO)
    return (low + u * (high - low)) ** _RHO


def respaced_levels(num_steps: int) -> list[float]:
    """Return `num_steps` noise levels from the largest down to the smallest (EDM, Eq. 5).

    Raises:
        ValueError: If there are fewer than two.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps must be 2 or more, got {num_steps}; or name the `levels`")
    low, high = SMALLEST ** (1 / _RHO), LARGEST ** (1 / _RHO)
    step = (low - high) / (num_steps - 1)
    return [(high + k * step) ** _RHO for k in range(num_steps)]


def check_levels(levels: Sequence[float]) -> None:
    """Raise ValueError unless these are noise levels that decrease."""
    if not levels or min(levels) <= 0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f"levels must be one or more, positive, decreasing, got {list(levels)}")


def heun(
    denoise: Denoise,
    eps: Tensor,
    levels: Sequence[float],
    churn: ChurnConfig | None = None,
    draw: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Sample by EDM's Algorithm 2, and without churn its Algorithm 1: second order.

    Two evaluations a step, one in the last, which ends at clean data. Churn adds noise before a
    step, and takes the step from the higher level.

    Args:
        denoise: The expected clean data.
        eps: Standard normal noise, (N, ...).
        levels: Decreasing noise levels; of one alone, its expectation is returned.
        churn: How much noise is added; None: none.
        draw: Standard normal noise (N, ...) of a step, by its number, for churn.

    Returns:
        x0, (N, ...).

    Raises:
        ValueError: If the levels do not decrease.
    """
    check_levels(levels)
    x = levels[0] * eps
    for k, (level, after) in enumerate(pairwise([*levels, 0.0])):
        if churn is not None and draw is not None and churn.start <= level <= churn.end:
            higher = level * (1 + min(churn.amount / len(levels), math.sqrt(2) - 1))
            x = x + math.sqrt(higher**2 - level**2) * churn.noise * draw(k)
            level = higher
        slope = (x - denoise(x, level)) / level
        x_next = x + (after - level) * slope
        if after > 0:
            at_end = (x_next - denoise(x_next, after)) / after
            x_next = x + (after - level) * (slope + at_end) / 2
        x = x_next
    return x


def loss_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, 1 / c_out^2 (EDM, Eq. 144).

    By it the squared error of the U-Net's own output is the same at every noise level.
    """
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
