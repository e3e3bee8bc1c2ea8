"""The one training loop, for every method.

Progress is counted in images (`nimg`), and every draw is a function of the seed and of an image's
place in the stream; so an interrupted training that goes on from its last state ends with the
same bits as one that never stopped.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from selfdistill.data.loader import Batch, Loader
from selfdistill.distributed import World
from selfdistill.files import atomic_path
from selfdistill.methods.method import Losses, Method
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.optim import (
    build_optimizers,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from selfdistill.pipelines.train.signals import StopRequest

logger = logging.getLogger(__name__)

_STATE = "state.pt"
CURVES = "curves.jsonl"


class Turn(nn.Module):
    """One network's share of a step, as a module, so that ranks can be joined around it."""

    def __init__(self, method: Method, name: str) -> None:
        super().__init__()
        self.method, self.name = method, name

    def forward(self, batch: Batch) -> Losses:
        """Return the turn's loss terms, (N,) each."""
        return self.method.turns()[self.name](batch)


@dataclass
class State:
    """All that a training needs to go on.

    Attributes:
        method: Networks, trained and averaged.
        optimizers: Optimizers of each turn.
        nimg: Images seen.
        sums: Loss terms summed over this rank's images since the last line of the curves.
    """

    method: Method
    optimizers: dict[str, list[Optimizer]]
    nimg: int
    sums: dict[str, Tensor]

    def save(self, directory: Path, world: World) -> None:
        """Write the state, whole or not at all; rank 0 writes for everyone."""
        # The sum over all ranks: whoever goes on may be more ranks, or fewer.
        sums = {name: world.mean(value) * world.size for name, value in self.sums.items()}
        _check_finite({name: float(value) for name, value in sums.items()}, self.nimg)
        if world.is_main:
            value = {
                "nimg": self.nimg,
                "method": self.method.state_dict(),
                "optimizers": {
                    name: [optimizer.state_dict() for optimizer in optimizers]
                    for name, optimizers in self.optimizers.items()
                },
                "sums": sums,
            }
            with atomic_path(directory / _STATE) as temporary:
                torch.save(value, temporary)
        world.barrier()

    def load(self, directory: Path, world: World) -> None:
        """Take up the saved state, if there is one."""
        file = directory / _STATE
        if not file.is_file():
            return
        value = torch.load(file, map_location=world.device, weights_only=True)
        self.method.load_state_dict(value["method"])
        for name, states in value["optimizers"].items():
            for optimizer, state in zip(self.optimizers[name], states, strict=True):
                optimizer.load_state_dict(state)
        self.nimg = value["nimg"]
        self.sums = {name: total / world.size for name, total in value["sums"].items()}
        logger.info("Resumed at %s images", f"{self.nimg:,}")


def fit(method: Method, loader: Loader, config: TrainConfig, world: World, directory: Path) -> int:
    """Train a method in place, from its last saved state to `config.total_nimg`.

    Args:
        method: The method, on the device of this rank, with the same weights on all ranks.
        loader: Batches by their place in the stream.
        config: The loop's parameters.
        world: This rank.
        directory: Where state and curves are kept.

    Returns:
        Images seen: total_nimg, rounded up to whole steps.

    Raises:
        ValueError: If the batch does not divide among the ranks.
        FloatingPointError: If a loss term is not finite; the message names it.
        SystemExit, KeyboardInterrupt: After SIGTERM or SIGINT, with the state saved.
    """
    share = config.share_of_rank(world.size)
    optimizers = {
        name: build_optimizers(getattr(method, name), config.optimizer) for name in method.turns()
    }
    state = State(method, optimizers, 0, {})
    state.load(directory, world)
    turns = {name: _parallel_turn(method, name, world) for name in method.turns()}
    num_micro = share // min(config.micro_batch_size, share)
    batches = loader.stream(_places(config, world, state.nimg, len(turns), num_micro))
    curves = Curves(directory, state.nimg, world)
    bar = tqdm(
        total=config.total_nimg, initial=state.nimg, desc="train", unit="img", unit_scale=True,
        disable=not world.is_main, mininterval=1.0,
    )  # fmt: skip
    start = (time.perf_counter(), state.nimg)
    with StopRequest() as stop, bar:
        while state.nimg < config.total_nimg:
            lr = learning_rate(config, state.nimg)
            for name, turn in turns.items():
                network = _train_only(method, name)
                set_learning_rate(optimizers[name], lr)
                _accumulate(turn, name, batches, num_micro, share, config, world, state.sums)
                grad_norm = clip_gradients(network, config.clip_norm)
                for optimizer in optimizers[name]:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            state.nimg += config.batch_size
            method.after_step(state.nimg, config.batch_size)
            bar.update(config.batch_size)

            if state.nimg % config.log_nimg == 0 or state.nimg >= config.total_nimg:
                loss = curves.write(state, lr, grad_norm)
                bar.set_postfix(loss=f"{loss:.4f}")
            stopping = world.any(stop.requested)
            if stopping or state.nimg % config.checkpoint_nimg == 0:
                state.save(directory, world)
            if stopping:
                stop.leave(state.nimg)
    _log_speed(state.nimg - start[1], time.perf_counter() - start[0], world)
    return state.nimg


class Curves:
    """The loss curves, one JSON line an interval: only what is deterministic.

    Speed and memory are no part of a result: they go to `<job>.speed.jsonl` beside the job.

    Lines past the point where training is taken up again are dropped.
    """

    def __init__(self, directory: Path, nimg: int, world: World) -> None:
        self.world = world
        self._file = directory / CURVES
        self._speed = directory.with_suffix(".speed.jsonl")
        self._then = (time.perf_counter(), nimg)
        self._last = 0
        if self._file.is_file():
            kept = _lines_until(nimg, self._file)
            self._last = json.loads(kept[-1])["nimg"] if kept else 0
            world.barrier()  # all have read before one writes
            if world.is_main:
                with atomic_path(self._file) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, state: State, lr: float, grad_norm: Tensor) -> float:
        """Write a line with the means since the last one; return the mean loss.

        Raises:
            FloatingPointError: If a term or the gradient is not finite; on every rank.
        """
        count = (state.nimg - self._last) / self.world.size
        means = self.world.mean(torch.stack(list(state.sums.values())) / count).tolist()
        terms = dict(zip(state.sums, means, strict=True))
        line = {"nimg": state.nimg, **terms, "lr": lr, "grad_norm": float(grad_norm)}
        _check_finite(line, state.nimg)
        line = {"nimg": state.nimg, "loss": sum(terms.values()), **line}
        if self.world.is_main:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._write_speed(state.nimg)
        state.sums = {}
        self._last = state.nimg
        return line["loss"]

    def _write_speed(self, nimg: int) -> None:
        now, (then, before) = time.perf_counter(), self._then
        line = {"nimg": nimg, "images_per_second": (nimg - before) / (now - then)}
        if self.world.device.type == "cuda":
            line["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        with self._speed.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._then = (now, nimg)


def _lines_until(nimg: int, file: Path) -> list[str]:
    """Return a file's lines up to `nimg` images; a line that a crash tore ends it."""
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["nimg"] > nimg:
                break
        except json.JSONDecodeError:
            break
        kept.append(line)
    return kept


def _log_speed(nimg: int, seconds: float, world: World) -> None:
    memory = ""
    if world.device.type == "cuda":
        memory = f", at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB a GPU"
    if nimg:
        speed = nimg / seconds
        logger.info("Trained on %s images, %.1f a second%s", f"{nimg:,}", speed, memory)


def _places(
    config: TrainConfig, world: World, nimg: int, num_turns: int, num_micro: int
) -> Iterator[np.ndarray]:
    """Yield the places in the stream of this rank's micro-batches, in the order of their use."""
    size = config.batch_size // world.size // num_micro
    for start in range(nimg, config.total_nimg, config.batch_size):
        mine = start + world.rank * num_micro * size
        for _ in range(num_turns):
            for micro in range(num_micro):
                yield np.arange(mine + micro * size, mine + (micro + 1) * size)


def _train_only(method: Method, name: str) -> nn.Module:
    """Let gradients reach the network of this turn alone, and return it."""
    for other in method.turns():
        getattr(method, other).requires_grad_(other == name)
    return getattr(method, name)


def _parallel_turn(method: Method, name: str, world: World) -> nn.Module:
    """Join the ranks around a turn while only its network takes gradients."""
    _train_only(method, name)
    return world.parallel(Turn(method, name))


def _accumulate(
    turn: nn.Module,
    name: str,
    batches: Iterator[Batch],
    num_micro: int,
    share: int,
    config: TrainConfig,
    world: World,
    sums: dict[str, Tensor],
) -> None:
    """Add up the gradient of the mean loss over the step's images, micro-batch by micro-batch."""
    bf16 = config.precision == "bf16" and world.device.type == "cuda"
    for micro in range(num_micro):
        with world.synchronised(turn, last=micro == num_micro - 1):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                losses = turn(next(batches))
            (sum(losses.values()).sum() / share).backward()
        for term, value in losses.items():
            key = f"{name}/{term}"
            total = value.detach().float().sum()
            sums[key] = sums[key] + total if key in sums else total


def _check_finite(values: dict[str, float], nimg: int) -> None:
    for name, value in values.items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} after {nimg:,} images; the last saved state is kept. "
                "Lower the learning rate or the gradient's clip_norm"
            )
