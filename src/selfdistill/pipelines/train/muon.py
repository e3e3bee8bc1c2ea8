"""torch's Muon with its Newton-Schulz iteration batched over matrices of one shape.

Same update, same state as `torch.optim.Muon` (Jordan et al., 2024; Moonlight's scaling,
arXiv:2502.16982). Matrices of one shape go through the iteration as one batch: a ViT has tens of
them in a handful of shapes. On CUDA the iteration runs in bfloat16 as torch's does; elsewhere in
float32, because most CPUs have no bfloat16 product and emulate it a hundred times slower.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

from selfdistill.distributed import World


def orthogonalise(
    matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float
) -> Tensor:
    """Push the singular values of each matrix towards 1 by a quintic Newton-Schulz iteration.

    X <- a X + (b G + c G G) X,   G = X X',   from X / |X|

    Args:
        matrices: Batch, (B, rows, columns); bfloat16 on CUDA, else float32.
        coefficients: (a, b, c).
        num_steps: Iterations.
        eps: Smallest norm divided by.
    """
    a, b, c = coefficients
    X = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = X.shape[1] > X.shape[2]
    if tall:
        X = X.mT
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        G = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(G, G, G, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class BatchedMuon(Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, Nesterov momentum and batching.

    Where a rank holds some rows of each matrix, momentum is kept of those rows, the matrix that is
    to be orthogonalised is gathered, and each rank takes its own rows of the result.

    Args:
        params: Matrices, or this rank's rows of them.
        lr: Learning rate.
        weight_decay: Decoupled decay.
        momentum: Of Nesterov's kind.
        ns_steps: Newton-Schulz iterations.
        world: The ranks that hold the other rows; None: the matrices are whole.
        num_rows: Rows of each whole matrix; not needed without `world`.

    Attributes:
        found_inf: As in torch's fused optimizers: a number on the device; where it is 1, a step
            changes neither weights nor momentum. None: every step counts.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        ns_steps: int,
        world: World | None = None,
        num_rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            ns_steps=ns_steps,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )
        self._world = world
        self._num_rows = list(num_rows or map(len, params))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("BatchedMuon takes no closure")
        (group,) = self.param_groups
        by_shape = defaultdict(list)
        for parameter, num_rows in zip(group["params"], self._num_rows, strict=True):
            if parameter.grad is not None:
                by_shape[num_rows, parameter.shape[1]].append(parameter)
        for shape, parameters in by_shape.items():
            self._update(group, shape, parameters)

    def _update(
        self, group: dict[str, Any], shape: tuple[int, int], parameters: list[torch.nn.Parameter]
    ) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        weights: list[Tensor] = list(parameters)
        gradient = torch.stack([p.grad for p in parameters if p.grad is not None])
        before = torch.stack(buffers)
        buffer = torch.lerp(before, gradient, 1 - momentum)
        nesterov = torch.lerp(gradient, buffer, momentum)
        whole = self._gather(nesterov, shape[0])
        update = orthogonalise(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
        update = self._own(update)
        change = torch.stack(weights).mul_(-lr * group["weight_decay"])
        change.sub_(update.to(change.dtype), alpha=lr * 0.2 * math.sqrt(max(shape)))
        if self.found_inf is not None:
            skipped = self.found_inf.bool()
            buffer = torch.where(skipped, before, buffer)
            change = torch.where(skipped, 0, change)
        torch._foreach_copy_(buffers, list(buffer.unbind()))
        torch._foreach_add_(weights, list(change.unbind()))

    def _gather(self, rows: Tensor, num_rows: int) -> Tensor:
        """Return whole matrices (B, num_rows, columns) of which each rank gives its rows."""
        if self._world is None or not self._world.shards:
            return rows
        if rows.is_cuda:
            rows = rows.bfloat16()  # in which the iteration computes
        return self._world.gather_rows(rows.transpose(0, 1), num_rows).transpose(0, 1).contiguous()

    def _own(self, matrices: Tensor) -> Tensor:
        """Return this rank's rows of whole matrices."""
        if self._world is None or not self._world.shards:
            return matrices
        return self._world.own_rows(matrices.transpose(0, 1)).transpose(0, 1)
