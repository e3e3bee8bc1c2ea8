"""What networks that sample differ in: their noise, what they predict, how a step is taken.

`Chain` is the chain of discrete times whose noise is predicted (DiT, Stable Diffusion), `Flow` the
linear path whose velocity is (SiT, DSD), `Levels` noise levels whose clean data are (EDM). Times
are tensors in the network's own units, and a grid of them leads from noise to data; after its last
time comes the end, where data are clean.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from selfdistill.diffusion import discrete, levels, paths
from selfdistill.diffusion.config import GridConfig, SolverConfig
from selfdistill.diffusion.discrete import log_snr_step, second_order_weight
from selfdistill.diffusion.solvers import SOLVERS, euler_maruyama, time_points
from selfdistill.draws import Draws

Predict = Callable[[Tensor, float], Tensor]
"""The state (N, ...) and one time for all of it, to the prediction (N, ...).

For solver "ddpm", the predicted variance stands behind it, (N, 2C, ...)."""


class Process(ABC):
    """How data become noise, and how a prediction leads back."""

    end: float
    """The time of clean data, which no network is asked at."""

    @abstractmethod
    def times(self, grid: GridConfig) -> list[float]:
        """Return the times at which a network is asked, noisiest first.

        Raises:
            ValueError: If the grid is not of this process.
        """

    @abstractmethod
    def flow_time(self, t: float) -> float:
        """Return a time as a share of the way from noise, 0, to data, 1."""

    @abstractmethod
    def draw_time(self, draws: Draws) -> Tensor:
        """Return a time (N,) a sample, evenly drawn from all."""

    @abstractmethod
    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t, (N, ...), of clean data and noise (N, ...) at times (N,)."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return what the network shall predict, (N, ...)."""

    @abstractmethod
    def step(self, x: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Go from times (N,) to later ones, or the end, by one prediction; first order."""

    @abstractmethod
    def between(self, t: Tensor, t_next: Tensor, share: float) -> Tensor:
        """Return times (N,) on the way from one to another, at which a network can be asked.

        Args:
            t: Times, (N,).
            t_next: Later ones, or the end, (N,).
            share: Of the way, in (0, 1).
        """

    @abstractmethod
    def joining(self, x: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Return the prediction whose step leads from x to x_next, (N, ...)."""

    @abstractmethod
    def larger_error(self, t: Tensor) -> Tensor:
        """Return the larger of the squared errors of noise and of clean data, at times (N,).

        In units of the prediction's squared error.
        """

    @abstractmethod
    def end_weight(self, t: float, t_next: float) -> float:
        """Return the weight of the step's end in its mean prediction, for second order."""

    @abstractmethod
    def midpoint_weight(self, t: float, t_next: float) -> float:
        """Return how far in time, as a share of a step, half of its log-SNR is (SSD, Eq. 12).

        Raises:
            ValueError: If a linear path is asked, on which the paper does without.
        """

    @abstractmethod
    def extrapolation(self, before: float, t: float, t_next: float) -> float:
        """Return k in p + k (p - p_before), what a step from t is taken by for second order."""

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the weight (N,) of the prediction's squared error in ordinary training."""
        return torch.ones_like(t, dtype=torch.float32)

    @abstractmethod
    def clean(self, x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the clean data, (N, ...), that a prediction at times (N,) speaks of."""

    @abstractmethod
    def at_level(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where a network can be asked of clean data with noise added.

        Every process of this module is one of noise levels: a state at time t, over a scale, is
        x0 + level eps.

        Args:
            sigma: Noise levels, (N,).

        Returns:
            Times, scales, and the levels themselves, the nearest that the network knows, (N,) each.
        """

    @abstractmethod
    def solve(self, predict: Predict, eps: Tensor, config: SolverConfig, draws: Draws) -> Tensor:
        """Sample.

        Args:
            predict: The network, guided or not.
            eps: Standard normal noise, (N, ...).
            config: Solver and times.
            draws: Of these samples, for stochastic solvers.

        Returns:
            Clean data, (N, ...).

        Raises:
            ValueError: If the solver or its grid is not of this process.
        """


class Chain(Process):
    """The chain of 1000 discrete times; networks predict the noise. See `diffusion.discrete`."""

    end = -1
    _solvers = {
        "ddim": discrete.ddim,
        "plms2": discrete.plms_2,
        "plms4": discrete.plms_4,
        "dpm2": discrete.dpm_2,
    }

    def __init__(self, schedule: discrete.Schedule) -> None:
        self._schedule = schedule

    def times(self, grid: GridConfig) -> list[float]:
        """Return integers, decreasing."""
        if grid.timestep_shift != 1 or grid.last_step is not None:
            raise ValueError(
                "timestep_shift and last_step are of a linear path; this network knows discrete "
                "times: leave both out, or give `times`"
            )
        if grid.levels is not None:
            raise ValueError("levels are of EDM's networks; this one knows discrete times")
        times = grid.times or discrete.respaced_times(grid.num_steps)
        discrete.check_times(times)
        return list(times[:: 2**grid.halvings])

    def flow_time(self, t: float) -> float:
        """Return 1 - n / 999."""
        return 1 - t / (discrete.NUM_TIMES - 1)

    def draw_time(self, draws: Draws) -> Tensor:
        """Return integers in [0, 999]."""
        return draws.integers("t", discrete.NUM_TIMES, 1).squeeze(1)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return alpha x0 + sigma eps."""
        return discrete.diffuse(x0, eps, t, self._schedule)

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the noise."""
        return eps

    def step(self, x: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Take DDIM's step."""
        return discrete.ddim_step(x, prediction, t, t_next, self._schedule)

    def between(self, t: Tensor, t_next: Tensor, share: float) -> Tensor:
        """Return the nearest integers, 0 at the least."""
        return (t + share * (t_next - t)).round().clamp(min=0).to(t.dtype)

    def joining(self, x: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Return the noise of DDIM's step (Salimans and Ho, arXiv:2202.00512, App. G)."""
        return discrete.noise_between(x, x_next, t, t_next, self._schedule)

    def larger_error(self, t: Tensor) -> Tensor:
        """Return max(1, (sigma / alpha)^2), of the noise and of the data."""
        ratio = (self._schedule.sigma / self._schedule.alpha).square().to(t.device)[t].float()
        return ratio.clamp(min=1)

    def midpoint_weight(self, t: float, t_next: float) -> float:
        """Return (u - s) / (t - s), u where half of log-SNR has been gained."""
        return discrete.midpoint_weight(int(t), int(t_next), self._schedule)

    def end_weight(self, t: float, t_next: float) -> float:
        """Return lambda*(h): the noise is taken to change linearly in log-SNR."""
        return second_order_weight(log_snr_step(int(t), int(t_next), self._schedule))

    def extrapolation(self, before: float, t: float, t_next: float) -> float:
        """Return lambda*(h) h / h_before; 0 for the step to the end, infinitely long."""
        if t_next == self.end:
            return 0.0
        return discrete.extrapolation(int(before), int(t), int(t_next), self._schedule)

    def clean(self, x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return (x - sigma eps) / alpha."""
        alpha, sigma = self._schedule.levels(x, t)
        return (x - sigma * prediction) / alpha

    def at_level(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the time with the nearest log-SNR, its alpha, and sigma / alpha."""
        half = self._schedule.half_log_snr.to(sigma.device)  # decreasing
        t = (half + sigma.double().log()[:, None]).abs().argmin(dim=1)
        level = (-half[t]).exp()
        return t, self._schedule.alpha.to(sigma.device)[t].float(), level.float()

    def solve(self, predict: Predict, eps: Tensor, config: SolverConfig, draws: Draws) -> Tensor:
        """Sample; "ddpm" draws noise for each step, and takes variances beside the noise."""
        if config.solver == "ddpm":
            if self._schedule is not discrete.LINEAR:
                raise ValueError("solver ddpm needs a DiT, which predicts variances: take ddim")

            def draw(number: int) -> Tensor:
                return draws.normal(f"ddpm_{number}", *eps.shape[1:])

            return discrete.ddpm(predict, eps, [int(t) for t in self.times(config)], draw)
        if config.solver not in self._solvers:
            raise ValueError(
                f"solver {config.solver!r} is of a linear path; this network knows discrete times: "
                f"take one of {', '.join(('ddpm', *self._solvers))}"
            )
        times = [int(t) for t in self.times(config)]
        return self._solvers[config.solver](predict, eps, times, self._schedule)


class Flow(Process):
    """The linear path; networks predict the velocity z0 - eps. See `diffusion.paths`."""

    end = 1.0

    def times(self, grid: GridConfig) -> list[float]:
        """Return flow times, increasing from 0."""
        if grid.times is not None:
            raise ValueError("times are of a chain; this network knows flow times: leave them out")
        if grid.levels is not None:
            raise ValueError("levels are of EDM's networks; this one knows flow times")
        points = time_points(grid.num_steps, grid.timestep_shift, grid.last_step)
        return points[:-1][:: 2**grid.halvings]

    def flow_time(self, t: float) -> float:
        """Return t itself."""
        return t

    def draw_time(self, draws: Draws) -> Tensor:
        """Return numbers in [0, 1)."""
        return draws.uniform("t", 1).squeeze(1)

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return t x0 + (1 - t) eps."""
        return paths.interpolate(x0, eps, beside(x0, t))

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the velocity."""
        return paths.velocity(x0, eps)

    def step(self, x: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Take Euler's step."""
        return x + beside(x, t_next - t) * prediction

    def between(self, t: Tensor, t_next: Tensor, share: float) -> Tensor:
        """Return the point of the straight way."""
        return torch.lerp(t, t_next, share)

    def joining(self, x: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Return the mean velocity of the step."""
        return (x_next - x) / beside(x, t_next - t)

    def larger_error(self, t: Tensor) -> Tensor:
        """Return max(t^2, (1 - t)^2): eps = z - t v, and z0 = z + (1 - t) v."""
        return torch.maximum(t, 1 - t).square()

    def midpoint_weight(self, t: float, t_next: float) -> float:
        """Refuse: the weights of Euler's steps depend on their length in time alone."""
        raise ValueError("weight midpoint, Eq. 12, is of discrete times; take auto, which is 0.5")

    def end_weight(self, t: float, t_next: float) -> float:
        """Return 1/2, whatever the step."""
        return 0.5

    def extrapolation(self, before: float, t: float, t_next: float) -> float:
        """Return half of the ratio of the steps."""
        return (t_next - t) / (2 * (t - before))

    def clean(self, x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return z + (1 - t) v."""
        return paths.z0_from_velocity(x, prediction, beside(x, t))

    def at_level(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return t = 1 / (1 + sigma), which is the scale too, and the level as it is."""
        t = 1 / (1 + sigma)
        return t, t, sigma

    def solve(self, predict: Predict, eps: Tensor, config: SolverConfig, draws: Draws) -> Tensor:
        """Sample; "sde" draws noise for each step. The state has 64 bits, as REPA's samplers'."""
        points = [*self.times(config), self.end]

        def velocity(z: Tensor, t: float) -> Tensor:
            return predict(z.to(eps.dtype), t)

        def noise(number: int) -> Tensor:
            return draws.normal(f"sde_{number}", *eps.shape[1:])

        if config.solver == "sde":
            return euler_maruyama(velocity, eps.double(), points, noise).to(eps.dtype)
        if config.solver not in SOLVERS:
            raise ValueError(
                f"solver {config.solver!r} is of discrete times; this network knows flow times: "
                f"take one of {', '.join((*SOLVERS, 'sde'))}"
            )
        return SOLVERS[config.solver](velocity, eps.double(), points).to(eps.dtype)


class Levels(Process):
    """Noise levels; networks predict the clean data. See `diffusion.levels`."""

    end = 0.0

    def times(self, grid: GridConfig) -> list[float]:
        """Return noise levels, decreasing."""
        if grid.timestep_shift != 1 or grid.last_step is not None or grid.times is not None:
            raise ValueError(
                "timestep_shift, last_step and times are of other processes; this network knows "
                "noise levels: leave them out, or give `levels`"
            )
        found = list(grid.levels or levels.respaced_levels(grid.num_steps))
        levels.check_levels(found)
        return found[:: 2**grid.halvings]

    def flow_time(self, t: float) -> float:
        """Return 1 / (1 + sigma)."""
        return 1 / (1 + t)

    def draw_time(self, draws: Draws) -> Tensor:
        """Return noise levels evenly drawn by the sampler's spacing."""
        return levels.level_at(draws.uniform("t", 1).squeeze(1))

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x0 + sigma eps."""
        return x0 + beside(x0, t) * eps

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the clean data."""
        return x0

    def step(self, x: Tensor, prediction: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Take Euler's step in sigma, which is DDIM's."""
        return torch.lerp(prediction, x, beside(x, t_next / t))

    def between(self, t: Tensor, t_next: Tensor, share: float) -> Tensor:
        """Return the level in between."""
        return torch.lerp(t, t_next, share)

    def joining(self, x: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Return the clean data of Euler's step."""
        ratio = beside(x, t_next / t)
        return (x_next - ratio * x) / (1 - ratio)

    def larger_error(self, t: Tensor) -> Tensor:
        """Return max(1, 1 / sigma^2), of the data and of the noise."""
        return (1 / t.square()).clamp(min=1)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return EDM's, 1 / c_out^2."""
        return levels.loss_weight(t)

    def end_weight(self, t: float, t_next: float) -> float:
        """Return 1 - lambda*(h): clean data are taken to change linearly in log-SNR."""
        if t_next == self.end:
            return 1.0
        return 1 - second_order_weight(math.log(t / t_next))

    def midpoint_weight(self, t: float, t_next: float) -> float:
        """Refuse: Eq. 12 is of discrete times."""
        raise ValueError("weight midpoint, Eq. 12, is of discrete times; take auto")

    def extrapolation(self, before: float, t: float, t_next: float) -> float:
        """Return (1 - lambda*(h)) h / h_before; 0 for the step to the end, infinitely long."""
        if t_next == self.end:
            return 0.0
        return self.end_weight(t, t_next) * math.log(t / t_next) / math.log(before / t)

    def clean(self, x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Return the prediction."""
        return prediction

    def at_level(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the level as it is, and no scale."""
        return sigma, torch.ones_like(sigma), sigma

    def solve(self, predict: Predict, eps: Tensor, config: SolverConfig, draws: Draws) -> Tensor:
        """Sample; with churn, noise is drawn for each step. The state has 64 bits, as EDM's."""
        if config.solver != "edm":
            raise ValueError(
                f"solver {config.solver!r} is of another process; this network knows noise "
                "levels: take edm"
            )

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return predict(x.to(eps.dtype), sigma)

        def draw(number: int) -> Tensor:
            return draws.normal(f"churn_{number}", *eps.shape[1:])

        times = self.times(config)
        return levels.heun(denoise, eps.double(), times, config.churn, draw).to(eps.dtype)


ProcessName = Literal["linear_chain", "scaled_linear_chain", "linear_path", "noise_levels"]
PROCESSES: dict[ProcessName, Process] = {
    "linear_chain": Chain(discrete.LINEAR),
    "scaled_linear_chain": Chain(discrete.SCALED_LINEAR),
    "linear_path": Flow(),
    "noise_levels": Levels(),
}
"""By the name that a network says."""


def pairs(process: Process, grid: GridConfig) -> list[tuple[float, float]]:
    """Return the steps of a grid that end at a time of it: (s, t), s the noisier."""
    return list(pairwise(process.times(grid)))


def beside(x: Tensor, values: Tensor) -> Tensor:
    """Return values (N,) so that they broadcast with x, (N, ...), in its type."""
    return values.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def as_times(values: Sequence[float], device: torch.device | None = None) -> Tensor:
    """Return times as a tensor in the network's units: integers of a chain, or float32."""
    of_chain = all(isinstance(value, int) for value in values)
    return torch.tensor(values, device=device, dtype=torch.int64 if of_chain else torch.float32)
