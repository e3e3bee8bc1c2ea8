"""Parameters of which every rank holds some rows: torch's FSDP2, `fully_shard`.

A parameter (R, ...) is cut along its first axis into ceil(R / ranks) rows a rank; the last ranks
may hold fewer, or none. What leaves the ranks (states, checkpoints) is whole again, so that nobody
can tell by how many ranks it was made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


@dataclass(frozen=True)
class Part:
    """A trained parameter and what this rank holds of it, in the same memory.

    Attributes:
        parameter: The network's; its gradient is exchanged between ranks.
        held: The same one, or this rank's rows of it: what an optimizer updates.
    """

    parameter: nn.Parameter
    held: nn.Parameter

    @classmethod
    def of(cls, parameter: nn.Parameter) -> "Part":
        """Return what this rank holds of a parameter."""
        if not is_cut(parameter):
            return cls(parameter, parameter)
        return cls(parameter, nn.Parameter(local(parameter), requires_grad=False))

    @property
    def num_rows(self) -> int:
        """Length of the whole parameter's first axis."""
        return self.parameter.shape[0]

    def take_gradient(self) -> None:
        """Move the gradient to where the optimizer looks for it."""
        if self.held is not self.parameter:
            gradient = self.parameter.grad
            self.held.grad = None if gradient is None else local(gradient)
            self.parameter.grad = None


def is_cut(tensor: Tensor) -> bool:
    """Say whether a tensor is torch's DTensor, of which each rank holds some rows."""
    return hasattr(tensor, "to_local")  # its class takes most of a second to import


def local(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that this rank holds, in the same memory; mostly all of it."""
    if not is_cut(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined]


def shard(
    module: nn.Module, layers: Iterable[nn.Module], whole: Iterable[nn.Module], device: str
) -> None:
    """Cut the parameters of a module among the ranks.

    A layer is made whole around each of its calls, the rest around a call of the module itself.

    Args:
        module: Whose `forward` is all that computes with the parameters.
        layers: Parts of it that are called as modules.
        whole: Parts of it that each rank keeps whole; nothing trains them.
        device: Where its parameters are, "cpu" or "cuda".
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    kept = {parameter for part in whole for parameter in part.parameters()}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)


def own_rows(whole: Tensor, rank: int, size: int) -> Tensor:
    """Return a rank's rows of a whole tensor (R, ...)."""
    share = -(-len(whole) // size)
    return whole[rank * share : (rank + 1) * share]


def gather_rows(rows: Tensor, num_rows: int, size: int) -> Tensor:
    """Return the whole tensor (num_rows, ...) of which each rank gives its rows; all call it."""
    share = -(-num_rows // size)
    padded = rows.new_zeros(share, *rows.shape[1:])
    padded[: len(rows)] = rows
    whole = rows.new_empty(share * size, *rows.shape[1:])
    dist.all_gather_into_tensor(whole, padded)
    return whole[:num_rows]


def whole_state(
    state: dict[str, Any], num_rows: Sequence[int], size: int, *, keep: bool
) -> dict[str, Any]:
    """Return an optimizer's state as if it had been of whole parameters, on the CPU.

    Args:
        state: Its `state_dict()`; values with an axis are rows like those of the parameter.
        num_rows: Length of the first axis of each whole parameter.
        size: Number of ranks; all call it.
        keep: Whether this rank wants the values; others get none.
    """

    def whole(value: Tensor, rows: int) -> Tensor:
        return gather_rows(value, rows, size) if value.ndim else value

    values: dict[int, dict[str, Tensor]] = {}
    for number, entry in state["state"].items():
        found = ((name, whole(value, num_rows[number])) for name, value in entry.items())
        values[number] = {name: value.cpu() for name, value in found if keep}
    return {**state, "state": values}


def part_state(state: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """Return a rank's part of an optimizer's state that `whole_state` gave."""

    def mine(value: Tensor) -> Tensor:
        return own_rows(value, rank, size).clone() if value.ndim else value

    values = {
        number: {name: mine(value) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": values}
