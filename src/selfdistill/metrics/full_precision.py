"""Metrics are numbers of float32: products of ten bits would show in them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Take products and convolutions of float32 as such inside the block, without TF32."""
    # Where "high" is set, as in determinism.py, fp32_precision would make allow_tf32 raise inside.
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
