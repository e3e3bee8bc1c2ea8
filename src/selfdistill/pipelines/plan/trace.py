"""FLOP and memory of code that runs on tensors without values.

Fake tensors have shapes, types and a device, and no bytes: a network of any size runs in seconds
on them. They pretend to lie on a CPU, because a machine without a GPU has no backward pass on fake
CUDA tensors; where a GPU's arithmetic is planned, the CPU's autocast stands in for CUDA's.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

# What CUDA's autocast computes in float32 and the CPU's does not (torch's list of "CUDA ops that
# can autocast to float32"), as far as networks use it.
_FLOAT32_ON_CUDA: frozenset[Callable[..., Any]] = frozenset(
    {
        F.layer_norm, F.group_norm, F.rms_norm, F.softmax, F.log_softmax, F.softplus,
        F.cosine_similarity, F.cross_entropy, F.l1_loss, F.smooth_l1_loss,
        torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.rsqrt, torch.square,
        Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.rsqrt, Tensor.square,
        Tensor.pow, Tensor.__pow__, Tensor.norm, Tensor.sum, Tensor.cumsum, Tensor.prod,
    }
)  # fmt: skip


class Tracer(TorchDispatchMode):
    """Counts FLOP, and follows every storage from the operation that makes it to its end.

    What an operation needs inside itself and gives back before it ends is not seen, nor what an
    allocator keeps beside.

    Attributes:
        flops: FLOP so far, a product and its sum as two; products, convolutions and attention.
        live: Bytes of the storages that are alive.
        peak: The most that `live` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and take note of what it makes."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.prim.device.default:  # asked of every fake tensor, again and again
            return out
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def end(_: weakref.ref[Any]) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, end)
        self.live += size
        self.peak = max(self.peak, self.live)


class _CudaAutocast(TorchFunctionMode):
    """Lets the CPU's autocast leave to float32 what CUDA's does."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FLOAT32_ON_CUDA or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*tree_map(_as_float32, args), **tree_map(_as_float32, kwargs))


def _as_float32(value: Any) -> Any:
    is_low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_low else value


@contextmanager
def tracing() -> Iterator[Tracer]:
    """Trace what is done, as CUDA would do it where the CPU's autocast is on."""
    with _CudaAutocast(), Tracer() as tracer:
        yield tracer


def without_values() -> FakeTensorMode:
    """Make every new tensor fake inside the context, on the CPU.

    Outside of it fake tensors go on, and what is made of one is fake too; only what comes of
    neither weights nor batch, such as a schedule that code asks for numbers, is real. Modules that
    were built on the meta device enter by `to_empty(device="cpu")`.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)
