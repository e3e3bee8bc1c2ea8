"""The variance-preserving chain of 1000 discrete times, and its deterministic samplers.

Time n lies in 0..999; **n = 0 is almost clean, n = 999 almost noise**, as in DDPM (Ho et al.,
arXiv:2006.11239), ADM and DiT, whose networks predict the noise:

    x_n = alpha_n x0 + sigma_n eps
    alpha_n^2 = prod_{i <= n} (1 - beta_i),    sigma_n^2 = 1 - alpha_n^2

Half the log-SNR is L_n = log(alpha_n / sigma_n). The betas are a `Schedule`. Behind time 0 comes
the end, time -1, which a sampler's last step leads to: x0 itself, or with Stable Diffusion, time 0
once more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

NUM_TIMES = 1000

Noise = Callable[[Tensor, int], Tensor]
"""eps(x, n): the state (N, ...) and one discrete time for all of it, to the noise (N, ...)."""
Sampler = Callable[[Noise, Tensor, Sequence[int]], Tensor]
"""Noise, state at times[0] (N, ...), and decreasing discrete times, to x0."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The betas of a chain, and where it ends.

    Attributes:
        betas: (1000,), float64.
        end_alpha: alpha of the end.
    """

    betas: Tensor
    end_alpha: float = 1.0

    @classmethod
    def linear(cls) -> Self:
        """Return beta from 1e-4 to 0.02: DDPM's, ADM's and DiT's; it ends at x0."""
        return cls(_even(1e-4, 0.02))

    @classmethod
    def scaled_linear(cls) -> Self:
        """Return sqrt(beta) from sqrt(8.5e-4) to sqrt(0.012): Stable Diffusion's; ends at time 0.

        Rombach et al., arXiv:2112.10752v2, "linear" in their code; diffusers calls it
        "scaled_linear", and the end `set_alpha_to_one: false`.
        """
        betas = _even(0.00085**0.5, 0.012**0.5).square()
        return cls(betas, end_alpha=math.sqrt(1 - float(betas[0])))

    @cached_property
    def alpha(self) -> Tensor:
        """alpha_n, (1000,), float64."""
        return torch.cumprod(1 - self.betas, dim=0).sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        """sigma_n, (1000,), float64."""
        return (1 - self.alpha.square()).sqrt()

    @cached_property
    def half_log_snr(self) -> Tensor:
        """L_n, (1000,), float64."""
        return torch.log(self.alpha / self.sigma)

    def levels(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at discrete times (M,), -1 the end, beside x (M, ...)."""
        end = self.end_alpha, math.sqrt(1 - self.end_alpha**2)
        tables = (
            torch.cat((table, table.new_tensor([last])))  # where -1 points
            for table, last in zip((self.alpha, self.sigma), end, strict=True)
        )
        alpha, sigma = (table.to(x.device)[n].view(-1, *[1] * (x.ndim - 1)) for table in tables)
        return alpha.to(x.dtype), sigma.to(x.dtype)


def _even(first: float, last: float) -> Tensor:
    # On the CPU whatever the default: a plan builds networks on the meta device.
    return torch.linspace(first, last, NUM_TIMES, dtype=torch.float64, device="cpu")


LINEAR = Schedule.linear()
SCALED_LINEAR = Schedule.scaled_linear()

_ADAMS_BASHFORTH = (  # weights of the newest first, by how many older ones there are
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_EDGE = 0.999  # pixels beyond are 0 or 255


def respaced_times(num_steps: int) -> list[int]:
    """Return `num_steps` discrete times from 999 down to 0, evenly spaced, both ends included.

    The public samplers of ADM and DiT add up a float stride and round each sum; so does this, since
    one time in a hundred comes out differently otherwise.

    Raises:
        ValueError: If there are not 2 to 1000 steps.
    """
    if not 2 <= num_steps <= NUM_TIMES:
        raise ValueError(f"num_steps must be in 2..{NUM_TIMES}, got {num_steps}")
    stride, position, times = (NUM_TIMES - 1) / (num_steps - 1), 0.0, []
    for _ in range(num_steps):
        times.append(round(position))
        position += stride
    return times[::-1]


def check_times(times: Sequence[int]) -> None:
    """Raise ValueError unless these are discrete times that decrease."""
    outside = [n for n in times if not 0 <= n < NUM_TIMES]
    if not times or outside or any(a <= b for a, b in pairwise(times)):
        raise ValueError(
            f"times must be one or more of 0..{NUM_TIMES - 1}, decreasing, got {list(times)}"
        )


def diffuse(x0: Tensor, eps: Tensor, times: Tensor, schedule: Schedule = LINEAR) -> Tensor:
    """Return x_n = alpha_n x0 + sigma_n eps, (M, ...), at one discrete time (M,) a sample."""
    alpha, sigma = schedule.levels(x0, times)
    return alpha * x0 + sigma * eps


def ddim_step(
    x: Tensor, eps: Tensor, n: Tensor, n_next: Tensor, schedule: Schedule = LINEAR
) -> Tensor:
    """Go from time n to time n_next without noise (DDIM, arXiv:2010.02502, Eq. 12, eta = 0).

    Args:
        x: States, (M, ...).
        eps: Predicted noise, (M, ...).
        n: Discrete times of the states, (M,).
        n_next: Those to go to, (M,); -1 is the end.
        schedule: The chain's.

    Returns:
        (M, ...).
    """
    (a, s), (a_next, s_next) = schedule.levels(x, n), schedule.levels(x, n_next)
    x0 = (x - s * eps) / a
    return a_next * x0 + s_next * eps


def noise_between(
    x: Tensor, x_next: Tensor, n: Tensor, n_next: Tensor, schedule: Schedule = LINEAR
) -> Tensor:
    """Return the noise by which `ddim_step` leads from x to x_next, (M, ...).

    Args:
        x: States, (M, ...).
        x_next: Those to go to, (M, ...).
        n: Discrete times of the states, (M,).
        n_next: Those to go to, (M,); -1 is the end.
        schedule: The chain's.
    """
    (a, s), (a_next, s_next) = schedule.levels(x, n), schedule.levels(x, n_next)
    return (x_next - a_next / a * x) / (s_next - a_next / a * s)


def variance_bound(x0: Tensor, x: Tensor, n: Tensor, eps: Tensor, values: Tensor) -> Tensor:
    """Return what a predicted variance costs, in bits a dimension (Nichol and Dhariwal, 2021).

    The schedule is linear, the only one whose networks predict variances here.

    The variance of the step from n to n - 1 is interpolated on a logarithmic scale, between that of
    the posterior and beta_n (arXiv:2102.09672v1, Eq. 15). Its term of the variational bound is a
    Gaussian's divergence from the posterior (Eq. 4); at n = 0, it is -log of the probability of
    x0's cell of width 2 / 255, as for pixels, which DiT keeps for its latents.

    Args:
        x0: Clean data, (M, ...).
        x: States, (M, ...).
        n: Discrete times of the states, (M,).
        eps: Predicted noise, (M, ...), through which no gradient shall go.
        values: What the network says of the variance, from -1 to 1 in sense, (M, ...).

    Returns:
        (M,).
    """
    shape = (-1, *[1] * (x.ndim - 1))
    alpha, betas = LINEAR.alpha, LINEAR.betas
    before = torch.cat((alpha.new_ones(1), alpha[:-1])).square()
    after = alpha.square()
    posterior = betas * (1 - before) / (1 - after)
    log_posterior = torch.cat((posterior[1:2], posterior[1:])).log()  # of n = 0 that of n = 1
    of_x0, of_x = betas * before.sqrt() / (1 - after), (1 - before) * (1 - betas).sqrt()
    tables = (log_posterior, betas.log(), of_x0, of_x / (1 - after))
    low, high, c0, c = (table.to(x.device)[n].view(shape).to(x.dtype) for table in tables)
    a, s = LINEAR.levels(x, n)
    share = (values + 1) / 2
    log_variance = share * high + (1 - share) * low
    mean = c0 * ((x - s * eps) / a) + c * x
    difference = (c0 * x0 + c * x - mean).square()
    divergence = (log_variance - low + (low - log_variance).exp() - 1) / 2
    divergence = divergence + difference * (-log_variance).exp() / 2
    cell = -_log_probability(x0, mean, log_variance / 2)
    bound = torch.where(n.view(shape) == 0, cell, divergence)
    return bound.flatten(1).mean(dim=1) / math.log(2)


def ddim(noise: Noise, eps: Tensor, times: Sequence[int], schedule: Schedule = LINEAR) -> Tensor:
    """Sample by DDIM, deterministic, first order; x0 is not clipped.

    Args:
        noise: Prediction of the noise.
        eps: Standard normal noise, (N, ...).
        times: Decreasing discrete times at which it is asked.
        schedule: The chain's.

    Returns:
        x0, (N, ...).

    Raises:
        ValueError: If the times do not decrease.
    """
    check_times(times)
    x = eps
    for n, n_next in pairwise([*times, -1]):
        x = _step(x, noise(x, n), n, n_next, schedule)
    return x


def ddpm(output: Noise, eps: Tensor, times: Sequence[int], draw: Callable[[int], Tensor]) -> Tensor:
    """Sample the ancestral chain with predicted variances, respaced (arXiv:2102.09672v1, Sec. 4).

    The schedule is linear, the only one whose networks predict variances here.

    Args:
        output: Prediction of the noise, and behind it, channel by channel, of the variance.
        eps: Standard normal noise, (N, C, ...).
        times: Decreasing discrete times at which it is asked.
        draw: Standard normal noise (N, C, ...) of a step, by its number.

    Returns:
        x0, (N, C, ...).

    Raises:
        ValueError: If the times do not decrease, or no variance is predicted.
    """
    check_times(times)
    x, num_channels = eps, eps.shape[1]
    levels = [float(LINEAR.alpha[n].square()) for n in times] + [1.0]
    for k, n in enumerate(times):
        predicted = output(x, n)
        if predicted.shape[1] != 2 * num_channels:
            raise ValueError(
                "solver ddpm needs a network that predicts its variance, with learn_sigma: take "
                "ddim"
            )
        e, values = predicted.split(num_channels, dim=1)
        level, next_level = levels[k], levels[k + 1]
        beta = 1 - level / next_level
        x0 = (x - math.sqrt(1 - level) * e) / math.sqrt(level)
        mean = (
            math.sqrt(next_level) * beta * x0
            + (1 - next_level) * math.sqrt(1 - beta) * x
        ) / (1 - level)  # fmt: skip
        if k + 1 == len(times):
            return mean
        low = math.log(beta * (1 - next_level) / (1 - level))
        log_variance = low + (values + 1) / 2 * (math.log(beta) - low)
        x = mean + (log_variance / 2).exp() * draw(k)
    return x


def plms_2(noise: Noise, eps: Tensor, times: Sequence[int], schedule: Schedule = LINEAR) -> Tensor:
    """Sample with the noise extrapolated from this time and the one before, second order.

    DDIM's step is exact for a noise that does not change on the way. Here it may change linearly in
    L (Adams and Bashforth's second rule for the exponential integrator; with even steps of any
    length near 3/2 eps_k - 1/2 eps_{k-1}, the PLMS of Liu et al., arXiv:2202.09778):

        eps = eps_k + lambda(h) h / h_before (eps_k - eps_{k-1}),    h = L_next - L

    The first step is DDIM's, and so is the last, infinitely long in L where it leads to x0.

    Args:
        noise: Prediction of the noise.
        eps: Standard normal noise, (N, ...).
        times: Decreasing discrete times.
        schedule: The chain's.

    Returns:
        x0, (N, ...).

    Raises:
        ValueError: If the times do not decrease.
    """
    check_times(times)
    x, before = eps, None
    for n, n_next in pairwise([*times, -1]):
        e = guess = noise(x, n)
        if before is not None and n_next >= 0:
            n_before, e_before = before
            guess = e + extrapolation(n_before, n, n_next, schedule) * (e - e_before)
        before = (n, e)
        x = _step(x, guess, n, n_next, schedule)
    return x


def plms_4(noise: Noise, eps: Tensor, times: Sequence[int], schedule: Schedule = LINEAR) -> Tensor:
    """Sample by PLMS, fourth order: Stable Diffusion's (Liu et al., arXiv:2202.09778, Eq. 12).

    The noise is extrapolated from four times as if they were evenly spaced, Adams and Bashforth's
    rule; the second and third step have fewer to go by. The first is Heun's: a try, an evaluation
    where it leads, and the mean of both, so there is one evaluation more than there are steps.

    Args:
        noise: Prediction of the noise.
        eps: Standard normal noise, (N, ...).
        times: Decreasing discrete times.
        schedule: The chain's.

    Returns:
        x0, (N, ...).

    Raises:
        ValueError: If the times do not decrease.
    """
    check_times(times)
    x, found = eps, list[Tensor]()
    for n, n_next in pairwise([*times, -1]):
        e = noise(x, n)
        if not found and n_next >= 0:
            guess = (e + noise(_step(x, e, n, n_next, schedule), n_next)) / 2
        else:
            rule = _ADAMS_BASHFORTH[len(found)]
            guess = sum((w * e for w, e in zip(rule, [e, *found], strict=True)), start=0 * e)
        found = [e, *found[:2]]
        x = _step(x, guess, n, n_next, schedule)
    return x


def dpm_2(noise: Noise, eps: Tensor, times: Sequence[int], schedule: Schedule = LINEAR) -> Tensor:
    """Sample by DPM-Solver-2, two evaluations a step (Lu et al., arXiv:2206.00927, Algorithm 1).

    The second evaluation is at the discrete time u whose L is nearest to the middle of the step,
    and r = (L_u - L) / h, near 1/2, says where that is:

        x_next = a_next / a x - s_next (e^h - 1) (eps + (eps_u - eps) / (2 r))

    Steps without a time between them, and the last one, are DDIM's, as in DPM-Solver's sampling by
    an odd number of evaluations.

    Args:
        noise: Prediction of the noise.
        eps: Standard normal noise, (N, ...).
        times: Decreasing discrete times.
        schedule: The chain's.

    Returns:
        x0, (N, ...).

    Raises:
        ValueError: If the times do not decrease.
    """
    check_times(times)
    x = eps
    for n, n_next in pairwise([*times, -1]):
        e = guess = noise(x, n)
        if n_next >= 0 and n - n_next > 1:
            h = log_snr_step(n, n_next, schedule)
            middle = float(schedule.half_log_snr[n]) + h / 2
            between = schedule.half_log_snr[n_next + 1 : n]
            u = n_next + 1 + int((between - middle).abs().argmin())
            e_u = noise(_step(x, e, n, u, schedule), u)
            guess = e + (e_u - e) * h / (2 * log_snr_step(n, u, schedule))
        x = _step(x, guess, n, n_next, schedule)
    return x


def log_snr_step(n: int, n_next: int, schedule: Schedule = LINEAR) -> float:
    """Return h = L_next - L, half the log-SNR gained from time n to the cleaner time n_next."""
    return float(schedule.half_log_snr[n_next] - schedule.half_log_snr[n])


def extrapolation(before: int, n: int, n_next: int, schedule: Schedule = LINEAR) -> float:
    """Return lambda(h) h / h_before, by which the noise goes on changing beyond time n."""
    h = log_snr_step(n, n_next, schedule)
    return second_order_weight(h) * h / log_snr_step(before, n, schedule)


def second_order_weight(h: float) -> float:
    """Return lambda(h) = (e^h - 1 - h) / (h (e^h - 1)), in (0, 1/2].

    The weight of the step's end in the mean noise over a step of length h, for a noise that changes
    linearly in L: what SSD's lambda has to be for second order (CVPR 2025, Eq. 5 and 12), which the
    paper searches for. It is near 1/2 - h / 12 for short steps.

    Raises:
        ValueError: If h is not positive.
    """
    if not h > 0:
        raise ValueError(f"a step must lead to cleaner times, h = {h}")
    if h < 1e-4:  # the quotient loses its digits
        return 0.5 - h / 12
    return (math.expm1(h) - h) / (h * math.expm1(h))


def midpoint_weight(n: int, n_next: int, schedule: Schedule = LINEAR) -> float:
    """Return (u - n) / (n_next - n), u the time at which L is in the middle of the step's.

    SSD's Eq. 12 (CVPR 2025); L is interpolated linearly between discrete times.
    """
    half = schedule.half_log_snr.flip(0).numpy()  # increasing, of times 999 to 0
    middle = (half[NUM_TIMES - 1 - n] + half[NUM_TIMES - 1 - n_next]) / 2
    u = NUM_TIMES - 1 - float(np.interp(middle, half, np.arange(NUM_TIMES)))
    return (u - n) / (n_next - n)


def _log_probability(x0: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the log of a Gaussian's probability of x0's cell, the outer ones without a bound."""
    centred, precision = x0 - mean, (-log_deviation).exp()
    upper = _normal_cdf(precision * (centred + 1 / 255))
    lower = _normal_cdf(precision * (centred - 1 / 255))
    inside = torch.where(x0 > _EDGE, 1 - lower, upper - lower)
    return torch.where(x0 < -_EDGE, upper, inside).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Return the normal distribution's function as ADM approximates it, to 3e-4."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _step(x: Tensor, eps: Tensor, n: int, n_next: int, schedule: Schedule) -> Tensor:
    def one(time: int) -> Tensor:
        return torch.tensor([time], device=x.device)

    return ddim_step(x, eps, one(n), one(n_next), schedule)
