"""The one training loop, for every method.

Progress is counted in images (`nimg`), and every draw is a function of the seed and of an image's
place in the stream; so an interrupted training that goes on from its last state ends with the
same bits as one that never stopped.
"""

import collections
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.data.loader import Batch, Loader
from selfdistill.distributed import World
from selfdistill.files import atomic_path
from selfdistill.methods.method import Losses, LossFn, Method
from selfdistill.pipelines.train.best import Best
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.curves import GRAD_NORM, MENDED, Curves, Means
from selfdistill.pipelines.train.layers import compile_layers, place_networks, recompute_layers
from selfdistill.pipelines.train.optim import Updates, learning_rate, set_learning_rate
from selfdistill.pipelines.train.signals import StopRequest
from selfdistill.progress import progress

logger = logging.getLogger(__name__)

Given = TypeVar("Given")
Result = TypeVar("Result")

_STATE = "state.pt"


class Joint(nn.Module):
    """A method, as the module around which ranks are joined: all that computes goes through it."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, compute: Callable[[Given], Result], given: Given) -> Result:
        """Return what a function of the method makes of a batch, or of noise."""
        return compute(given)


@dataclass
class State:
    """All that a training needs to go on.

    Attributes:
        method: Networks, trained and averaged.
        updates: What is trained in each turn, and its optimizers.
        nimg: Images seen.
        means: Loss terms and gradient norms of this rank since the last line of the curves.
        best: The best state so far; None: none is selected, the last one counts.
    """

    method: Method
    updates: Mapping[str, Updates]
    nimg: int = 0
    means: Means = field(default_factory=Means)
    best: Best | None = None

    def take_up(self, name: str, losses: Losses) -> None:
        """Add the loss terms of a turn's images to the means."""
        for term, values in losses.items():
            self.means.add(f"{name}/{term}", values)

    def take_up_gradient(
        self, name: str, norm: Tensor, mended: Tensor | None, world: World
    ) -> None:
        """Add norm and mended share of a turn's gradient, which all ranks know, to the means.

        Where turns alternate, each norm has a mean of its own beside the common one.
        """
        found = {GRAD_NORM: norm} | ({} if mended is None else {f"{MENDED}_{name}": mended})
        if len(self.updates) > 1:
            found[f"{GRAD_NORM}_{name}"] = norm
        for key, value in found.items():
            self.means.add(key, value if world.is_main else value.new_empty(0))

    def selects(self, joint: Joint, stop: StopRequest) -> bool:
        """Measure the method if it is time; return whether nothing of it is left to be done."""
        if self.best is None:
            return True
        return self.best.consider(self.nimg, joint, self.method, lambda: stop.requested)

    def save(self, directory: Path, world: World) -> None:
        """Write the state, whole or not at all; rank 0 writes for everyone."""
        # Whole tensors and the totals of all ranks: whoever goes on may be more ranks, or fewer.
        totals = self.means.over_ranks(world)
        value = {
            "nimg": self.nimg,
            "method": world.state_of(self.method),
            "optimizers": {name: updates.state() for name, updates in self.updates.items()},
            "means": totals,
            **({} if self.best is None else {"trail": self.best.trail}),
        }
        if world.is_main:
            with atomic_path(directory / _STATE) as temporary:
                torch.save(value, temporary)
        if self.best is not None:
            self.best.forget_others()
        world.barrier()

    def load(self, directory: Path, world: World) -> None:
        """Take up the saved state, if there is one."""
        file = directory / _STATE
        if not file.is_file():
            return
        # Mapped, so that a rank reads no more than it holds.
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        world.load_state(self.method, value["method"])
        for name, states in value["optimizers"].items():
            self.updates[name].load(states)
        self.nimg = value["nimg"]
        if self.best is not None:
            self.best.take_up(value["trail"])
        # All of it on rank 0: shares of it would not add up to the same bits.
        factor = int(world.is_main)
        self.means = Means(
            {name: factor * total.to(world.device) for name, total in value["means"].items()}
        )
        logger.info("Resumed at %s images", f"{self.nimg:,}")


def fit(
    method: Method,
    loader: Loader,
    config: TrainConfig,
    world: World,
    directory: Path,
    best: Best | None = None,
) -> int:
    """Train a method in place, from its last saved state to `config.total_nimg`.

    Args:
        method: The method, with the same weights on all ranks; on their devices afterwards.
        loader: Batches by their place in the stream.
        config: The loop's parameters.
        world: This rank.
        directory: Where state and curves are kept.
        best: Takes note of the best state on the way; the method ends as the last one all the same.

    Returns:
        Images seen: total_nimg, rounded up to whole steps.

    Raises:
        ValueError: If the batch does not divide among the ranks, or `optimizers` names no turn.
        FloatingPointError: If losses or gradients are not finite again and again; the message
            names the term. Single steps of that kind are skipped and counted.
        SystemExit, KeyboardInterrupt: After SIGTERM or SIGINT, with the state saved.
    """
    share = config.share_of_rank(world.size)
    if unknown := sorted(config.optimizers.keys() - method.turns().keys()):
        raise ValueError(
            f"train.optimizers.{unknown[0]}: there is no such turn; there are "
            f"{', '.join(method.turns())}"
        )
    joint = Joint(method)
    place_networks(joint, method, world)
    updates = {
        name: Updates.of(getattr(method, name), config.optimizer_of(name), world)
        for name in method.turns()
    }
    state = State(method, updates, best=best)
    state.load(directory, world)
    if config.compile and world.device.type == "cuda":
        compile_layers(method)
    if config.recompute_activations:
        recompute_layers(method)
    turns = {}
    for name in updates:  # the ranks are joined around what takes gradients at that moment
        _train_only(updates, name)
        turns[name] = world.parallel(joint)
    num_micro = share // min(config.micro_batch_size, share)
    batches = loader.stream(_places(config, world, state.nimg, num_micro))
    probe = loader.load(np.arange(config.num_probe_images)) if config.num_probe_images else None
    curves = Curves(directory, state.nimg, world)
    bar = progress("train", config.total_nimg, initial=state.nimg, disable=not world.is_main)
    start = (time.perf_counter(), state.nimg)

    def finish_step(lr: float) -> None:
        """Write the line that is due, and the state; leave if a signal came."""
        if _ends_interval(state.nimg, config) and state.selects(joint, stop):
            with _autocast(config, world):
                diagnostics = joint(method.diagnose, probe) if probe is not None else {}
            found = best.line(state.nimg) if best is not None else {}
            loss = curves.write(state.nimg, state.means, lr, diagnostics, found)
            state.means = Means()
            bar.set_postfix(loss=f"{loss:.4f}")
        stopping = world.any(stop.requested)
        if stopping or state.nimg % config.checkpoint_nimg == 0:
            state.save(directory, world)
        if stopping:
            stop.leave(state.nimg)

    with StopRequest() as stop, bar:
        if state.means.totals and _ends_interval(state.nimg, config):
            # A signal cut its selection short: the step is saved, the line is still to be written.
            before = state.nimg - config.batch_size
            method.before_step(before)
            finish_step(learning_rate(config, before))
        while state.nimg < config.total_nimg:
            lr = learning_rate(config, state.nimg)
            method.before_step(state.nimg)
            step = _for_turns(itertools.islice(batches, num_micro), len(turns))
            for (name, turn), micro_batches in zip(turns.items(), step, strict=True):
                if method.rests(name):
                    collections.deque(micro_batches, maxlen=0)  # they go by
                    continue
                _train_only(updates, name)
                ratio = config.optimizer_of(name).lr / config.optimizer.lr
                set_learning_rate(updates[name].optimizers, ratio * lr)
                loss_of = method.turns()[name]
                for micro, batch in enumerate(micro_batches):
                    with world.synchronised(turn, last=micro == num_micro - 1):
                        losses = _backward(turn, loss_of, batch, share, config, world)
                    state.take_up(name, losses)
                mend = partial(method.clean_gradients, name)
                state.take_up_gradient(name, *updates[name].apply(config.clip_norm, mend), world)
            state.nimg += config.batch_size
            method.after_step(state.nimg, config.batch_size)
            bar.update(config.batch_size)
            finish_step(lr)
    _log_speed(state.nimg - start[1], time.perf_counter() - start[0], world)
    return state.nimg


def _ends_interval(nimg: int, config: TrainConfig) -> bool:
    """Return whether a line of the curves is due after so many images."""
    return nimg > 0 and (nimg % config.log_nimg == 0 or nimg >= config.total_nimg)


def _backward(
    turn: nn.Module,
    loss_of: LossFn,
    batch: Batch,
    share: int,
    config: TrainConfig,
    world: World,
) -> Losses:
    """Add a micro-batch's share to the gradient of the mean loss over the rank's images."""
    with _autocast(config, world):
        losses: Losses = turn(loss_of, batch)
    (sum(losses.values()).sum() / share).backward()  # type: ignore[union-attr]
    return losses


def _autocast(config: TrainConfig, world: World) -> torch.autocast:
    bf16 = config.precision == "bf16" and world.device.type == "cuda"
    return torch.autocast(world.device.type, torch.bfloat16, enabled=bf16)


def _log_speed(nimg: int, seconds: float, world: World) -> None:
    memory = ""
    if world.device.type == "cuda":
        memory = f", at most {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB a GPU"
    if nimg:
        speed = nimg / seconds
        logger.info("Trained on %s images, %.1f a second%s", f"{nimg:,}", speed, memory)


def _places(config: TrainConfig, world: World, nimg: int, num_micro: int) -> Iterator[np.ndarray]:
    """Yield the places in the stream of this rank's micro-batches; a step's turns share them."""
    size = config.batch_size // world.size // num_micro
    for start in range(nimg, config.total_nimg, config.batch_size):
        mine = start + world.rank * num_micro * size
        for micro in range(num_micro):
            yield np.arange(mine + micro * size, mine + (micro + 1) * size)


def _for_turns(batches: Iterator[Batch], num_turns: int) -> Sequence[Iterator[Batch]]:
    """Return a step's micro-batches once for each turn; they are held while a turn is to come."""
    # tee holds on to what it has handed out, also where nobody else waits for it.
    return (batches,) if num_turns == 1 else itertools.tee(batches, num_turns)


def _train_only(updates: Mapping[str, Updates], name: str) -> None:
    """Let gradients reach what this turn trains, and nothing that another turn does."""
    for other, update in updates.items():
        update.require_gradient(other == name)
