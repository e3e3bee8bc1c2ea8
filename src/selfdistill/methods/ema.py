"""Exponential moving averages of weights."""

import torch
from torch import nn

from selfdistill.distributed import local


def warmed_up_decay(decay: float, num_steps: int) -> float:
    """Return min(decay, (1 + k) / (10 + k)): an average that forgets its random start.

    Args:
        decay: Final decay per step, in [0, 1).
        num_steps: k, optimizer steps taken before this one.
    """
    return min(decay, (1 + num_steps) / (10 + num_steps))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * network, parameter by parameter."""
    averages, weights = (list(map(local, part.parameters())) for part in (average, network))
    torch._foreach_lerp_(averages, weights, 1 - decay)


def half_life_decay(half_life_nimg: float, batch_size: int) -> float:
    """Return 0.5^(batch / half-life), the decay of a step; 0 for no half-life: a copy.

    Args:
        half_life_nimg: Images in which an average forgets half.
        batch_size: Images a step.
    """
    return 0.5 ** (batch_size / max(half_life_nimg, 1e-8))
