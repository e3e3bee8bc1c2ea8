"""The best state of a training so far: its weights in a file, and all evaluations in the state.

The file bears the number of images at which it was written, and stays until a saved state knows a
better one: whenever a training is killed, what its last state calls the best is there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfdistill.distributed import World
from selfdistill.files import atomic_path
from selfdistill.methods.method import Method

logger = logging.getLogger(__name__)

PICTURES = "pictures"  # folder of what evaluations looked at, beside the state and in a checkpoint


@dataclass(frozen=True)
class Selection:
    """What the best state of a training is selected by.

    Attributes:
        settings: All that determines the numbers beside `inputs`, as JSON values.
        inputs: Digests of files and statistics, by name.
        machine: What else ranks must know, as JSON values.
        reference: Statistics of the real images.
        modules: Dotted names of the code that measures.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    machine: Mapping[str, Any]
    reference: Mapping[str, np.ndarray]
    modules: Sequence[str]


class Judge(Protocol):
    """What measures a method while it is trained; ranks ask it together.

    Attributes:
        metric: Name of the metric.
        better: Which numbers are better.
        nimg: Images between two evaluations.
    """

    metric: str
    better: Literal["lower", "higher"]
    nimg: int

    def measure(
        self, nimg: int, joint: nn.Module, method: Method, stopping: Callable[[], bool]
    ) -> float | None:
        """Return the number, the same on all ranks.

        Args:
            nimg: Images seen.
            joint: Around the method: `joint(compute, x)` is `compute(x)`.
            method: In evaluation mode.
            stopping: Whether this rank was told to stop; then there may be no number.
        """
        ...


class Best:
    """The best state of a training.

    Args:
        judge: What measures a state.
        directory: Where its weights are kept, beside the state.
        total_nimg: Images of the training; the last evaluation is at its end.
        world: This rank.

    Attributes:
        trail: Images seen and value of each evaluation, in order.
    """

    def __init__(self, judge: Judge, directory: Path, total_nimg: int, world: World) -> None:
        self.trail: list[tuple[int, float]] = []
        self._judge, self._directory, self._world = judge, directory, world
        self._total_nimg = total_nimg

    @property
    def nimg(self) -> int:
        """Images seen by the best state, the first of equals."""
        return self._best()[0]

    def consider(
        self, nimg: int, joint: nn.Module, method: Method, stopping: Callable[[], bool]
    ) -> bool:
        """Measure the method if it is time, and keep its weights if it is the best so far.

        Args:
            nimg: Images seen.
            joint: Around the method.
            method: Left as it was found.
            stopping: Whether this rank was told to stop.

        Returns:
            Whether it is done; False: it was cut short.
        """
        if nimg % self._judge.nimg and nimg < self._total_nimg:
            return True
        modes = [(module, module.training) for module in method.modules()]
        method.eval()
        try:
            value = self._judge.measure(nimg, joint, method, stopping)
        finally:
            for module, training in modes:
                module.training = training
        if value is None:
            return False
        self.trail.append((nimg, value))
        if self.nimg == nimg:
            self._keep(nimg, method)
        logger.info("%s %.6g at %s images; best %.6g at %s", self._judge.metric, value,
                    f"{nimg:,}", self._best()[1], f"{self.nimg:,}")  # fmt: skip
        return True

    def line(self, nimg: int) -> dict[str, float]:
        """Return what the curves say of an evaluation at `nimg` images; nothing: there was none."""
        found = {at: value for at, value in self.trail if at == nimg}
        return {self._judge.metric: found[nimg]} if found else {}

    def take_up(self, trail: Sequence[tuple[int, float]]) -> None:
        """Go on from the evaluations of a saved state.

        Raises:
            FileNotFoundError: If the weights of the best are gone.
        """
        self.trail = [(int(nimg), float(value)) for nimg, value in trail]
        if self.trail and self._world.is_main and not self._file(self.nimg).is_file():
            raise FileNotFoundError(
                f"{self._file(self.nimg)}: the weights of the best state are gone, which the saved "
                f"state counts on: delete {self._directory} to train anew"
            )

    def forget_others(self) -> None:
        """Delete the weights that were the best once, now that a saved state knows better ones."""
        if self._world.is_main:
            for file in self._directory.glob("best-*.safetensors"):
                if not self.trail or file != self._file(self.nimg):
                    file.unlink()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the best state, on rank 0."""
        return load_file(self._file(self.nimg)) if self._world.is_main else {}

    def about(self) -> dict[str, Any]:
        """Return what a finished checkpoint says of the selection, as JSON values."""
        nimg, value = self._best()
        trail = [list(one) for one in self.trail]
        return {"metric": self._judge.metric, "value": value, "nimg": nimg, "trail": trail}

    def _best(self) -> tuple[int, float]:
        choose = min if self._judge.better == "lower" else max
        return choose(self.trail, key=lambda one: one[1])

    def _file(self, nimg: int) -> Path:
        return self._directory / f"best-{nimg}.safetensors"

    def _keep(self, nimg: int, method: Method) -> None:
        """Write the method's weights, whole or not at all; ranks call it together."""
        state = self._world.state_of(method)
        if self._world.is_main:
            kept = method.kept(state)
            with atomic_path(self._file(nimg)) as temporary:
                save_file({name: x.cpu().contiguous() for name, x in kept.items()}, temporary)
