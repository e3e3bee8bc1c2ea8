"""Classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598)."""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Return u + w (c - u) over all channels; w = 1 gives c, w = 0 gives u.

    Args:
        conditional: Prediction c for the class, (N, ...).
        unconditional: Prediction u for the null class, (N, ...).
        guidance: Scale w.
    """
    return unconditional + guidance * (conditional - unconditional)
