"""Seconds an image, of several samplings in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from selfdistill.determinism import deterministic
from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.pipelines.tradeoff.config import TradeoffConfig


def time_in_turn(
    config: TradeoffConfig,
    checkpoints: Mapping[str, Checkpoint],
    samplings: Mapping[str, Any],
    device: str | None,
) -> dict[str, Any]:
    """Time the samplings round by round, so that a busy machine is busy for all of them.

    What a network makes is timed, a decoder of its own included; that of a VAE beside is not.

    Args:
        config: Batch and rounds.
        checkpoints: By row.
        samplings: By <row>.<sampling>, parameters of the sampling as written.
        device: Where; None: on CUDA if there is one.

    Returns:
        As `nodes.time_samplings` does.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with deterministic(place.type):
        methods = {row: one.load(place) for row, one in checkpoints.items()}
        works = {
            name: _work(methods[name.partition(".")[0]], values, config.batch_size, place)
            for name, values in samplings.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for work, _ in works.values():  # to warm up
            work()
        for _ in range(config.num_rounds):
            for name, (work, _) in works.items():
                start = time.perf_counter()
                work()
                seconds[name].append((time.perf_counter() - start) / config.batch_size)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = medians[next(iter(works))]
    return {
        "device": torch.cuda.get_device_name() if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": config.batch_size,
        "samplings": {
            name: {
                "nfe": nfe,
                "seconds_per_image": medians[name],
                "ratio": medians[name] / first,
                "seconds": seconds[name],
            }
            for name, (_, nfe) in works.items()
        },
    }


def _work(
    method: Any, values: Mapping[str, Any], batch_size: int, place: torch.device
) -> tuple[Callable[[], None], int]:
    """Return what makes a batch, and the evaluations of the network that it takes."""
    solver = SolverConfig.of(values)
    index = torch.arange(batch_size, device=place)
    labels, draws = torch.zeros_like(index), Draws(values["seed"], index)

    def work() -> None:
        method.sample(draws.normal("sample", *method.noise_shape()), labels, solver, draws)
        if place.type == "cuda":
            torch.cuda.synchronize()

    return work, solver.num_evaluations
