"""A teacher's tokens in eight bits: one scale a token."""

import torch
from torch import Tensor

_SCALE_BYTES = 4  # of float32, behind the token's values
_LARGEST = 127


def packed_dim(dim: int) -> int:
    """Return the bytes of a packed token of width `dim`."""
    return dim + _SCALE_BYTES


def pack_int8(tokens: Tensor) -> Tensor:
    """Round each token to 255 levels of its own largest magnitude.

    An entry is off by at most its token's largest magnitude / 254.

    Args:
        tokens: (..., D), any float type, finite.

    Returns:
        (..., D + 4), int8: D values and the four bytes of the token's scale, float32.
    """
    tokens = tokens.float()
    tiny = torch.finfo(torch.float32).tiny
    scale = tokens.abs().amax(-1, keepdim=True).clamp_min(_LARGEST * tiny) / _LARGEST
    values = (tokens / scale).round().to(torch.int8)
    return torch.cat((values, scale.contiguous().view(torch.int8)), dim=-1)


def unpack_int8(packed: Tensor) -> Tensor:
    """Return the tokens that `pack_int8` rounded, (..., D), float32."""
    return packed[..., :-_SCALE_BYTES].float() * scales_of(packed)


def scales_of(packed: Tensor) -> Tensor:
    """Return the scale of each packed token, (..., 1), float32; not finite if the token was not."""
    return packed[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
