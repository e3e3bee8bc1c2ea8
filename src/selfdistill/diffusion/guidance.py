"""Classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598)."""

import torch
from torch import Tensor

from selfdistill.draws import Draws


def drop_labels(labels: Tensor, draws: Draws, probability: float, null: int) -> Tensor:
    """Replace a share of the labels (N,) by the null class, which guidance needs to be trained."""
    dropped = draws.bernoulli("class_dropout", probability, 1).squeeze(1)
    return torch.where(dropped, null, labels)


def guide(
    conditional: Tensor, unconditional: Tensor, guidance: float, num_channels: int | None = None
) -> Tensor:
    """Return u + w (c - u); w = 1 gives c, w = 0 gives u.

    Args:
        conditional: Prediction c for the class, (N, ...).
        unconditional: Prediction u for the null class, (N, ...).
        guidance: Scale w.
        num_channels: How many channels are guided, the first ones; the others are those of c. DiT
            guides 3 of its 4, which its published numbers depend on. None: all.
    """
    guided = unconditional + guidance * (conditional - unconditional)
    if num_channels is None:
        return guided
    return torch.cat((guided[:, :num_channels], conditional[:, num_channels:]), dim=1)
