"""FLOP of a sample and parameters that sampling needs, without values and without all the steps.

What a sample costs grows by the same number with each step, and by another with each evaluation of
the network that is guided. Both are taken from samplings of two and three steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from selfdistill.diffusion.config import (
    ChainSolverName,
    FlowSolverName,
    LevelSolverName,
    SolverConfig,
)
from selfdistill.diffusion.process import PROCESSES, ProcessName
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.method import Method
from selfdistill.methods.registry import build_network
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.plan.step import EmptyDraws, outline
from selfdistill.pipelines.plan.trace import tracing, without_values


@dataclass(frozen=True)
class SamplingCost:
    """What sampling costs.

    Attributes:
        num_parameters: Parameters that take part.
        flops: FLOP of one sample, by sampling.
    """

    num_parameters: int
    flops: Mapping[str, int]


class _Reads(TorchDispatchMode):
    """Notes the storages that operations read, by identity."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = (value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor))
        self.seen |= {tensor.untyped_storage()._cdata for tensor in tensors}
        return func(*args, **kwargs)


def trace_sampling(
    network: NetworkConfig,
    method: MethodConfig,
    samplings: Mapping[str, SolverConfig],
    decoding: int = 0,
    guides: Mapping[str, NetworkConfig] | None = None,
) -> SamplingCost:
    """Return what a row's samplings cost an image.

    Args:
        network: The architecture.
        method: What samples.
        samplings: Solvers by name, one or more.
        decoding: FLOP of a VAE's decoder beside.
        guides: Networks that guide in the place of the row's own, by sampling.
    """
    built = outline(network, method)
    guided_by: dict[str | None, Method] = {None: built}
    for name, guide in (guides or {}).items():
        guided_by[name] = outline(network, method)
        with torch.device("meta"):
            guided_by[name].take_guide(build_network(guide))
    with without_values():
        for one in guided_by.values():
            one.to_empty(device="cpu").eval().requires_grad_(False)
        eps, labels = torch.empty(1, *built.noise_shape()), torch.zeros(1, dtype=torch.int64)
        draws = EmptyDraws(0, torch.arange(1))
    weights = {p.untyped_storage()._cdata: p.numel() for p in built.parameters()}
    with tracing() as tracer, _Reads() as reads:

        @cache
        def flops(solver: str, num_steps: int, guidance: float, guide: str | None = None) -> int:
            config = _short(solver, num_steps, guidance)
            before = tracer.flops
            guided_by[guide].sample(eps, labels, config, draws)
            return tracer.flops - before

        costs = {}
        for name, config in samplings.items():
            two, three = flops(config.solver, 2, 1.0), flops(config.solver, 3, 1.0)
            guided = num_guided(config)
            guided_as = name if name in guided_by else None
            more = flops(config.solver, 2, config.guidance, guided_as) - two if guided else 0
            evaluations = _short(config.solver, 2, 1.0).num_evaluations
            steps = (config.num_times - 2) * (three - two)
            costs[name] = decoding + two + steps + guided * more // evaluations
        used = sum(number for key, number in weights.items() if key in reads.seen)
    return SamplingCost(used, costs)


def num_guided(config: SolverConfig) -> int:
    """Return how many evaluations of the network are guided."""
    times: list[float] = []

    def predict(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return torch.cat((x, x), dim=1) if config.solver == "ddpm" else x

    kinds: dict[ProcessName, Any] = {
        "linear_chain": ChainSolverName,
        "linear_path": FlowSolverName,
        "noise_levels": LevelSolverName,
    }
    (kind,) = (name for name, solvers in kinds.items() if config.solver in get_args(solvers))
    process = PROCESSES[kind]
    process.solve(predict, torch.zeros(1, 1), config, Draws(0, torch.arange(1)))
    return sum(config.guides_at(process.flow_time(t)) for t in times)


def _short(solver: str, num_steps: int, guidance: float) -> SolverConfig:
    values = {"solver": solver, "num_steps": num_steps, "guidance": guidance}
    return SolverConfig.model_validate({**values, "guidance_interval": (0, 1)})
