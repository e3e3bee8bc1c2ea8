"""What makes the same inputs give the same bits: the one place that sets it.

Nothing in the package draws from a global generator but the initial weights of a row, which its own
seed decides; Python's and NumPy's global generators are used nowhere.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Let torch compute the same bits each time, on the same kind of device; undo it afterwards.

    On CUDA, its generator and CUBLAS_WORKSPACE_CONFIG, which counts once, stay as they are set.

    Args:
        device: "cpu" or "cuda", where the block computes. Products of float32 may use TF32 on CUDA.
            CUDA must not have been used before.
    """
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory = torch.utils.deterministic
    before = (
        torch.get_deterministic_debug_mode(),
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.get_rng_state(),
    )
    _set_algorithms(2, device)
    # Nobody reads memory that was not written; filling it would cost bandwidth.
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    torch.manual_seed(0)  # whoever forgets a seed of its own is at least the same each time
    try:
        yield
    finally:
        mode, fill, benchmark, precision, state = before
        _set_algorithms(mode, device)
        memory.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)
        torch.set_rng_state(state)


def _set_algorithms(mode: int, device: str) -> None:
    """Say what to do where an algorithm is not deterministic: 0 take it, 1 and warn, 2 fail.

    The compiler is told too where it is loaded, or may be: on CUDA. Its import takes seconds.
    """
    if device == "cuda" or "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
    else:
        torch.set_deterministic_debug_mode(mode)
