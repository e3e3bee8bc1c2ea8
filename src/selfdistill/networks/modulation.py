"""How a condition acts on tokens."""

from torch import Tensor


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (N, L, D) by vectors (N, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]
