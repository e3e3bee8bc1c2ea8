"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from selfdistill.distributed import Part, World
from selfdistill.pipelines.train.config import AdamWConfig, OptimizerConfig, TrainConfig
from selfdistill.pipelines.train.muon import BatchedMuon

Mend = Callable[[list[torch.Tensor]], torch.Tensor | None]


def learning_rate(config: TrainConfig, nimg: int) -> float:
    """Return the rate of the step that starts after `nimg` images: linear rise, then the schedule.

    Args:
        config: Warm-up, schedule and peak rate.
        nimg: Images seen before the step.
    """
    peak = config.optimizer.lr
    if nimg < config.warmup_nimg:
        return peak * (nimg + config.batch_size) / (config.warmup_nimg + config.batch_size)
    if config.schedule == "constant":
        return peak
    done = (nimg - config.warmup_nimg) / max(config.total_nimg - config.warmup_nimg, 1)
    return peak * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def build_optimizers(
    network: nn.Module,
    config: OptimizerConfig,
    parts: Sequence[Part] | None = None,
    world: World | None = None,
) -> list[Optimizer]:
    """Build AdamW, or Muon for the network's hidden matrices with AdamW for all else.

    Muon's update is scaled to the RMS of AdamW's, 0.2 sqrt(max(out, in)) (Moonlight,
    arXiv:2502.16982), so both follow one learning rate.

    Args:
        network: Says which of its parameters are hidden matrices.
        config: Rates and momenta.
        parts: What this rank holds of the parameters that are trained; None: all of each.
        world: The ranks that hold the rest; None: there is none.
    """
    hidden = network.hidden_matrices()  # type: ignore[operator]
    chosen = {id(parameter) for parameter in hidden}
    parts = trained_parts(network) if parts is None else parts
    if isinstance(config, AdamWConfig):
        decays = [part.held for part in parts if id(part.parameter) in chosen]
        others = [part.held for part in parts if id(part.parameter) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": decays, "weight_decay": config.weight_decay},
            {"params": others},
        ]
        rates: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
        return [AdamW(groups, **rates, weight_decay=0, fused=True)]
    matrices = [part for part in parts if id(part.parameter) in chosen]
    rest = [part.held for part in parts if id(part.parameter) not in chosen]
    return [
        BatchedMuon(
            [part.held for part in matrices],
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            ns_steps=config.num_newton_schulz,
            world=world,
            num_rows=[part.num_rows for part in matrices],
        ),
        AdamW(rest, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0, fused=True),
    ]


def trained_parts(network: nn.Module) -> list[Part]:
    """Return what this rank holds of the parameters that require a gradient."""
    return [Part.of(parameter) for parameter in network.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class Updates:
    """What is trained in a turn, and by what.

    Attributes:
        parts: What this rank holds of the trained parameters.
        optimizers: Those that update it.
        world: This rank.
    """

    parts: Sequence[Part]
    optimizers: Sequence[Optimizer]
    world: World

    @classmethod
    def of(cls, network: nn.Module, config: OptimizerConfig, world: World) -> "Updates":
        """Return the updates of a network, whose parameters may be cut among the ranks."""
        parts = trained_parts(network)
        return cls(parts, build_optimizers(network, config, parts, world), world)

    def require_gradient(self, required: bool) -> None:
        """Let gradients reach the trained parameters, or not."""
        for part in self.parts:
            part.parameter.requires_grad_(required)

    def apply(self, max_norm: float | None, mend: Mend) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mend and clip the gradients and update the parameters; see `apply_gradients`.

        Args:
            max_norm: Largest norm; None: any.
            mend: Changes gradients in place, first, and says how many elements were not finite.

        Returns:
            The norm, (), and the share of the elements that were mended, (); None: nothing mends.
        """
        for part in self.parts:
            part.take_gradient()
        held = [part.held for part in self.parts]
        gradients = [parameter.grad for parameter in held if parameter.grad is not None]
        share, broken = None, mend(gradients)
        if broken is not None:
            count = torch.full_like(broken, sum(gradient.numel() for gradient in gradients))
            share = torch.div(*self.world.sum(torch.stack((broken, count))))
        return apply_gradients(held, self.optimizers, max_norm, self.world), share

    def state(self) -> list[dict[str, Any]]:
        """Return the states of the optimizers, of whole parameters, on rank 0; all call it."""
        return [
            self.world.optimizer_state(optimizer, rows)
            for optimizer, rows in zip(self.optimizers, self._num_rows(), strict=True)
        ]

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Take up the states that `state` gave, on any number of ranks."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            self.world.load_optimizer_state(optimizer, state)

    def _num_rows(self) -> Iterator[list[int]]:
        """Yield the rows of each optimizer's whole parameters."""
        rows = {id(part.held): part.num_rows for part in self.parts}
        for optimizer in self.optimizers:
            yield [rows[id(held)] for group in optimizer.param_groups for held in group["params"]]


def set_learning_rate(optimizers: Sequence[Optimizer], lr: float) -> None:
    """Set the rate of all parameter groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def apply_gradients(
    parameters: Sequence[nn.Parameter],
    optimizers: Sequence[Optimizer],
    max_norm: float | None,
    world: World | None = None,
) -> torch.Tensor:
    """Clip the gradient to a norm of at most `max_norm`, if given, and update the parameters.

    A gradient that is not finite changes neither weights nor averages: torch's fused optimizers
    skip the step when told so by `found_inf`, on the device, without the host waiting for it.

    Args:
        parameters: What this rank holds of what is trained.
        optimizers: Those that update it.
        max_norm: Largest norm, of what all ranks hold together; None: any.
        world: The ranks that hold the rest; None: there is none.

    Returns:
        The norm before, (); not finite if the step was skipped.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if world is not None:
        norm = world.norm(norm)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
    skip = (~norm.isfinite()).float()
    for optimizer in optimizers:
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
