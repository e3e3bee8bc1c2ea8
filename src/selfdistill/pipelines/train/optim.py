"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from selfdistill.pipelines.train.config import OptimizerConfig, TrainConfig
from selfdistill.pipelines.train.muon import BatchedMuon


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


def build_optimizers(network: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Give the network's hidden matrices to Muon and everything else that is trained to AdamW.

    Muon's update is scaled to the RMS of AdamW's, 0.2 sqrt(max(out, in)) (Moonlight,
    arXiv:2502.16982), so both follow one learning rate.
    """
    hidden = network.hidden_matrices()  # type: ignore[operator]
    chosen = {id(parameter) for parameter in hidden}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if id(parameter) in chosen]
    rest = [parameter for parameter in trained if id(parameter) not in chosen]
    return [
        BatchedMuon(
            matrices,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            ns_steps=config.num_newton_schulz,
        ),
        AdamW(rest, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0, fused=True),
    ]


def set_learning_rate(optimizers: Sequence[Optimizer], lr: float) -> None:
    """Set the rate of all parameter groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def apply_gradients(
    parameters: Sequence[nn.Parameter], optimizers: Sequence[Optimizer], max_norm: float
) -> torch.Tensor:
    """Clip the gradient to a norm of at most `max_norm`, and update the parameters with it.

    A gradient that is not finite changes neither weights nor averages: torch's fused optimizers
    skip the step when told so by `found_inf`, on the device, without the host waiting for it.

    Returns:
        The norm before, (); not finite if the step was skipped.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
    skip = (~norm.isfinite()).float()
    for optimizer in optimizers:
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
