"""What a training writes down as it goes: one JSON line an interval."""

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.distributed import World
from selfdistill.files import atomic_path
from selfdistill.metrics.rank import collapse_warning

logger = logging.getLogger(__name__)

CURVES = "curves.jsonl"
GRAD_NORM, MENDED = "grad_norm", "mended"  # of updates; all else is of images
_PATIENCE = 10  # lines with the inequality of Eq. 5 violated, before a user is warned
_REMEDY = (
    "the last saved state is kept for another run of the same row. Lower the learning rate or the "
    "gradient's clip_norm: a changed row starts anew"
)


class Means:
    """Means over an interval, kept on the device: adding to them makes no host wait.

    Values that are not finite are counted and left out. The sums are float64, in which the order
    of float32 terms does not matter: ranks that were resumed add up to what the others would.

    Attributes:
        totals: By name (3,): the sum of the finite values, their number, the number of all.
    """

    def __init__(self, totals: Mapping[str, Tensor] | None = None) -> None:
        self.totals: dict[str, Tensor] = dict(totals or {})

    def add(self, name: str, values: Tensor) -> None:
        """Take up values, of any shape; none at all are as good."""
        values = values.detach().double().flatten()
        finite = values.isfinite()
        sums = (torch.where(finite, values, 0).sum(), finite.sum(), torch.ones_like(values).sum())
        total = torch.stack([part.double() for part in sums])
        self.totals[name] = self.totals[name] + total if name in self.totals else total

    def over_ranks(self, world: World) -> dict[str, Tensor]:
        """Return the totals of all ranks together."""
        return {name: world.sum(value) for name, value in self.totals.items()}


class Curves:
    """The loss curves: only what is deterministic.

    Lines past the point where training is taken up again are dropped. Speed and memory are no part
    of a result: they go to `<job>.speed.jsonl` beside the job, which keeps all lines.
    """

    def __init__(self, directory: Path, nimg: int, world: World) -> None:
        self.world = world
        self._file = directory / CURVES
        self._speed = directory.with_suffix(".speed.jsonl")
        self._then = (time.perf_counter(), nimg)
        self._recent: deque[dict[str, Any]] = deque(maxlen=_PATIENCE + 1)
        if self._file.is_file():
            kept = _lines_until(nimg, self._file)
            self._recent.extend(map(json.loads, kept))
            world.barrier()  # all have read before one writes
            if world.is_main:
                with atomic_path(self._file) as temporary:
                    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(
        self,
        nimg: int,
        means: Means,
        lr: float,
        diagnostics: Mapping[str, Any],
        selection: Mapping[str, float] | None = None,
    ) -> float:
        """Write a line; ranks call it together.

        Args:
            nimg: Images seen.
            means: Loss terms since the last line; and, of each update, on rank 0, the gradient's
                norm and the share of it that was mended.
            lr: The last step's learning rate.
            diagnostics: What the method says of itself; may be empty.
            selection: By metric, what the best state is selected by; empty or None: not this time.

        Returns:
            The mean loss.

        Raises:
            FloatingPointError: If more than half of the steps were skipped, or of a turn's
                gradients mended, or a term was never finite; on every rank.
        """
        totals = {name: value.tolist() for name, value in means.over_ranks(self.world).items()}
        skipped = self._count_skipped(nimg, totals)
        values = {name: total / count for name, (total, count, _) in totals.items()}
        norms, shares = (
            {name: values.pop(name) for name in totals if name.startswith(kind)}
            for kind in (GRAD_NORM, MENDED)
        )
        self._check_mended(nimg, shares)
        loss = sum(values.values())
        line = {"nimg": nimg, "loss": loss, **values, "lr": lr, **norms}
        line |= {"skipped_steps": skipped, **shares}
        line |= {"diagnostics": dict(diagnostics)} if diagnostics else {}
        line |= {"selection": dict(selection)} if selection else {}
        self._recent.append(line)
        if self.world.is_main:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._write_speed(nimg)
            if warning := collapse_warning(list(self._recent), _PATIENCE):
                logger.warning(warning)
        return loss

    def _count_skipped(self, nimg: int, totals: Mapping[str, list[float]]) -> int:
        """Return how many steps had no finite gradient; refuse to go on if most had none."""
        _, finite, steps = totals[GRAD_NORM]
        skipped = round(steps - finite)
        if not skipped and all(count for _, count, _ in totals.values()):
            return 0
        faults = [
            f"{name} is not finite for {total - count:,.0f} of {total:,.0f} images"
            for name, (_, count, total) in totals.items()
            if not name.startswith((GRAD_NORM, MENDED)) and count < total
        ] or ["a gradient is not finite, though all loss terms are"]
        count = f"{skipped} of {steps:.0f} steps were skipped up to {nimg:,} images"
        text = f"{'; '.join(faults)}: {count}"
        if 2 * skipped > steps or not all(count for _, count, _ in totals.values()):
            raise FloatingPointError(f"{text}; {_REMEDY}")
        logger.warning(text)
        return skipped

    def _check_mended(self, nimg: int, shares: Mapping[str, float]) -> None:
        """Warn of gradients that had to be mended; refuse to go on if it was most of a turn's."""
        for name, share in shares.items():
            if share:
                turn = name.removeprefix(f"{MENDED}_")
                text = f"{share:.2g} of {turn}'s gradients was not finite up to {nimg:,} images"
                if share > 0.5:
                    raise FloatingPointError(f"{text}; {_REMEDY}")
                logger.warning("%s, and was mended", text)

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
