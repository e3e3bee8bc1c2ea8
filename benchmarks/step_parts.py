"""A row's optimizer step, and the same step cut into parts that run alone.

`Parts` watches one call of the method's loss and cuts the graph at every call to a part: arguments
and results become leaves. A part then runs its own calls again, forward from its leaves and
backward from the gradient that the others left at its results, in the order of the backward pass:

    losses                 the loss itself with every part replaced by its result
    other heads            features and class, from h and from z
    LPIPS, decoder         of the reconstructed image
    diffusion heads        P and V: the DiT layer twice
    noisy pass             backbone, latent in, teacher tokens out
    EMA pass               the averaged network's backbone; no backward
    encoder                backbone, patches in, latent out
    augmentation, draws    photometric, mask, time, noise, labels; no backward
    optimizer, EMA update  as in the step, with the gradient that the parts have left

So an operation of the step is in one part and in no other, and the parts leave the gradient that
the step leaves (`tests/test_benchmarks.py`). Only what autocast casts is cast once in a step, and
once in every part that needs it.
"""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor

import selfdistill
from selfdistill.data.loader import Batch
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.dsd import DSD
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.lpips import WIDTHS, random_lpips
from selfdistill.networks.teacher_config import TeacherConfig

if importlib.util.find_spec("kedro") is None:  # the stage's package wants it, the loop does not
    stage = types.ModuleType("selfdistill.pipelines.train")
    stage.__path__ = [str(Path(selfdistill.__file__).parent / "pipelines" / "train")]
    sys.modules[stage.__name__] = stage

from selfdistill.pipelines.train import optim
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.layers import compile_layers, recompute_layers

# As they are printed: the order of the step.
PARTS = (
    "augmentation, draws", "encoder", "EMA pass", "noisy pass", "diffusion heads", "other heads",
    "decoder", "LPIPS", "losses", "optimizer", "EMA update",
)  # fmt: skip
UPDATES = {"optimizer", "EMA update"}  # of weights; the others are the loss and its gradient
Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """A row's parameters, validated."""

    network: NetworkConfig
    method: MethodConfig
    train: TrainConfig
    teacher: TeacherConfig


def read_row(name: str, folder: Path) -> Row:
    """Read a row of DSD, and its dataset's teacher with random weights, without Kedro."""
    dsd, datasets, teachers = (
        yaml.safe_load((folder / f"{file}.yml").read_text(encoding="utf-8"))
        for file in ("dsd", "datasets", "teachers")
    )
    teacher = teachers["teachers"][datasets[dsd[name]["data"]]["teacher"]]
    return Row(
        NetworkConfig.model_validate(dsd[name]["network"]),
        MethodConfig.model_validate(dsd[name]["method"]),
        TrainConfig.model_validate(dsd[name]["train"]),
        TeacherConfig.model_validate(teacher | {"weights": "random"}),
    )


class OpenDraws(Draws):
    """Draws whose methods can be replaced: a subclass is not frozen."""


def build(row: Row, device: str) -> DSD:
    """Build the row's method; LPIPS as wide as the row says, of random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        method = build_method(row.network, row.method)
    assert isinstance(method, DSD)
    if row.method.root.weights.perceptual:
        published = row.method.root.perceptual_network == "lpips_vgg16"
        lpips = random_lpips(widths=WIDTHS) if published else random_lpips()
        method.perceptual = lpips.to(device)
    if device != "meta":
        for weight, copy in zip(
            method.network.parameters(), method.average.parameters(), strict=True
        ):
            if not weight.any():
                copy.data.copy_(torch.nn.init.normal_(weight, std=0.02))
    return method


class Step:
    """One optimizer step on one batch, as `fit` does it."""

    def __init__(
        self, row: Row, size: int, device: str, *, bf16=False, compiled=False, recompute=False
    ) -> None:
        self.size, self.device, self.bf16, self.nimg = size, device, bf16, 0
        self.clip_norm = row.train.clip_norm
        self.method = build(row, device)
        self.optimizers = optim.build_optimizers(self.method.network, row.train.optimizer)
        self.trained = [p for p in self.method.network.parameters() if p.requires_grad]
        if compiled:
            compile_layers(self.method)
        if recompute:
            recompute_layers(self.method)
        config, images = row.network.root, (size, 3, *[row.network.root.resolution] * 2)
        with torch.device(device):
            self.batch = Batch(
                images=torch.rand(images) * 2 - 1,
                labels=torch.arange(size) % config.num_classes,
                features=torch.randn(size, config.num_tokens, config.teacher_dim),
                draws=OpenDraws(row.train.seed, torch.arange(size)),
            )

    def __call__(self) -> None:
        self.backward()
        self.optimize()
        self.update_average()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def backward(self) -> None:
        with self.autocast():
            losses = self.method.loss(self.batch)
        (sum(losses.values()).sum() / self.size).backward()

    def optimize(self) -> None:
        optim.apply_gradients(self.trained, self.optimizers, self.clip_norm)

    def update_average(self) -> None:
        self.nimg += self.size
        self.method.after_step(self.nimg, self.size)


@dataclass
class Call:
    """A call of the loss to a part, cut off from the graph before and behind.

    Attributes:
        args: What the loss gave, with its graph.
        leaves: The same, without.
        result: What the loss got: leaves, at which its gradient arrives.
        grad: Whether the call was made with gradients.
    """

    part: str
    function: Callable
    args: tuple
    leaves: tuple
    result: Any
    grad: bool

    def run(self, autocast: torch.autocast) -> None:
        """Run forward again, and backward to the arguments and beyond, to the next cut."""
        with autocast, torch.set_grad_enabled(self.grad):
            outputs = self.function(*self.leaves)
        _backward(_tuple(outputs), _tuple(self.result))
        _backward(self.args, self.leaves)

    def forget(self) -> None:
        """Drop the gradients of the last round."""
        for leaf in (*self.leaves, *_tuple(self.result)):
            if isinstance(leaf, Tensor):
                leaf.grad = None


def _backward(tensors: tuple, leaves: tuple) -> None:
    """Send the gradients that lie at the leaves on from the tensors that they were cut from."""
    pairs = [
        (tensor, leaf.grad)
        for tensor, leaf in zip(tensors, leaves, strict=True)
        if isinstance(tensor, Tensor) and tensor.requires_grad and leaf.grad is not None
    ]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))


def _tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _leaf(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_leaf, value))
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return value


class Parts:
    """A step taken apart; see the module's docstring."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.calls: list[Call] = []
        self._replies: Iterator[Call] | None = None
        self._inside = False
        self.losses()

    def runs(self) -> dict[str, Run]:
        """Return the parts, in the order in which a round must run them."""
        names = dict.fromkeys(call.part for call in reversed(self.calls))
        return {
            "losses": self.losses,
            **{name: partial(self._run, name) for name in names},
            "optimizer": self.step.optimize,
            "EMA update": self.step.update_average,
        }

    def losses(self) -> None:
        """Compute the loss from the parts' results, and its gradient there; at first, watch."""
        for call in self.calls:
            call.forget()
        self._replies = iter(self.calls) if self.calls else None
        with ExitStack() as stack:
            for part, owner, name in self._sites():
                stub = self._stub(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, stub))
            self.step.backward()

    def _run(self, part: str) -> None:
        for call in reversed(self.calls):
            if call.part == part:
                call.run(self.step.autocast())

    def _sites(self) -> Iterator[tuple[str, Any, str]]:
        """Yield where the loss is cut: part, owner and name of a function."""
        method, draws = self.step.method, self.step.batch.draws
        for name in ("augment", "draw_time", "drop_labels"):
            yield "augmentation, draws", method, name
        yield "augmentation, draws", draws, "normal"
        yield "encoder", method.network, "encode"
        yield "EMA pass", method.average, "encode_with_features"
        yield "noisy pass", method.network, "denoise"
        for name in ("predict_z0", "predict_velocity"):
            yield "diffusion heads", method.network, name
        for name in ("predict_features", "classify"):
            yield "other heads", method.network, name
        yield "decoder", method.network, "decode"
        if method.perceptual is not None:
            yield "LPIPS", method.perceptual, "forward"

    def _stub(self, part: str, function: Callable) -> Callable:
        """Return what stands for a function: at first it watches, later it replies."""

        def stub(*args: Any) -> Any:
            if self._inside:  # a part that needs another, as the time needs a normal
                return function(*args)
            if self._replies is not None:
                call = next(self._replies)
                assert call.part == part  # the loss asks in the same order each time
                call.args = args
                return call.result
            self._inside = True
            leaves = _leaf(args)
            result = _leaf(function(*leaves))
            self._inside = False
            self.calls.append(Call(part, function, args, leaves, result, torch.is_grad_enabled()))
            return result

        return stub
