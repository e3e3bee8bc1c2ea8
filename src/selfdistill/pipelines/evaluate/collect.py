"""Statistics of a set of images, collected by all ranks in pieces that a killed run goes on from.

The pieces and the batches inside them depend on the number of images alone, and are merged in their
order: any number of ranks, each with the same number of threads, gives the same bits.
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfdistill.data.image_set import ImageSet, open_image_set
from selfdistill.data.loader import read_ahead
from selfdistill.distributed import World, pick_device, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import (
    fingerprint,
    job,
    read_arrays,
    write_arrays,
)
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.metrics.definitions import DEFINITIONS, accepted_sha256
from selfdistill.metrics.extractors import build_extractor
from selfdistill.metrics.metric import Need
from selfdistill.metrics.statistics import RunningStatistics, Statistics
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.progress import progress
from selfdistill.sources import Code

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "timm", "pillow", "clean-fid")
# 24 divides among 1, 2, 3, 4, 6, 8, 12 or 24 ranks; a piece's covariances take 70 MB.
_NUM_PIECES = 24
_CHOSEN = "chosen.npz"
_BATCHES_PER_PIECE = 8  # or more


@dataclass(frozen=True)
class Collector:
    """What statistics are made with: the same for all the images of an evaluation.

    Attributes:
        config: Batch size, profile, and the metrics.
        weights: Files of the extractors' weights, by the names in `metrics.definitions`.
        distributed: The machine.
        scratch: Where pieces and finished statistics are kept; all of it may be deleted.
    """

    config: EvaluationConfig
    weights: Mapping[str, Path]
    distributed: DistributedConfig
    scratch: Path
    _finished: list[Path] = field(default_factory=list, repr=False)

    @property
    def device(self) -> torch.device:
        """Where this process may compute."""
        return torch.device(pick_device(self.distributed.device))

    def collect(
        self, images: ImageSet, chosen: Sequence[int] | np.ndarray, needs: Sequence[Need]
    ) -> Statistics:
        """Return what the metrics need to know of some images; it is kept for the next time.

        Args:
            images: Any set of images.
            chosen: Which of them, in this order.
            needs: What to know.

        Raises:
            ValueError: If a file of weights is not the network that defines its extractor, an image
                cannot be read, or another run is at work in the scratch folder.
        """
        if not needs:
            return Statistics()
        indices = np.asarray(chosen)
        decisive = {
            "images": images.fingerprint,
            "chosen": fingerprint(indices.tolist()),
            "needs": sorted(needs),
            "extractors": self.protocol(needs),
            "batch_size": self.config.batch_size,
            "source": Code([__name__]).fingerprint(),
            "libraries": [version(name) for name in LIBRARIES],
        }
        with job(self.scratch, fingerprint(decisive)) as directory:
            finished = directory.with_suffix(".npz")
            if finished.is_file():
                logger.info("Found the statistics of %s in %s", images.path, finished)
                statistics = Statistics.from_arrays(read_arrays(finished))
            else:
                merged = RunningStatistics(needs)
                for piece in self._pieces(images, indices, needs, directory):
                    merged.merge(RunningStatistics.from_state(read_arrays(piece)))
                statistics = merged.finish()
                write_arrays(finished, statistics.arrays())
            shutil.rmtree(directory)
            self._finished.append(finished)
            return statistics

    def protocol(self, needs: Sequence[Need]) -> dict[str, dict[str, Any]]:
        """Return by extractor what decides the features, as JSON values.

        Raises:
            ValueError: If a file of weights is not the network that defines its extractor.
        """
        protocol: dict[str, dict[str, Any]] = {}
        for name in sorted({need.extractor for need in needs}):
            sha256 = accepted_sha256(name, self.weights) or TinyExtractor().weights_sha256
            protocol[name] = {"weights_sha256": sha256, "resize": DEFINITIONS[name].resize}
            if name == "inception_2015":
                protocol[name]["profile"] = self.config.profile
            protocol[name]["device"] = "cpu" if name == "tiny" else self.device.type
        return protocol

    def forget(self) -> None:
        """Delete the statistics that this collector has returned from the scratch folder."""
        while self._finished:
            self._finished.pop().unlink(missing_ok=True)

    def _pieces(
        self, images: ImageSet, indices: np.ndarray, needs: Sequence[Need], directory: Path
    ) -> list[Path]:
        """Have the missing pieces made and return the files of all, in order."""
        pieces = _cut(len(indices), self.config.batch_size)
        if missing := [piece for piece in pieces if not _piece(directory, piece[0]).is_file()]:
            write_arrays(directory / _CHOSEN, {"indices": indices})
            spec = {
                "images": str(images.path),
                "num_images": len(images),
                "needs": needs,
                "weights": {name: str(file) for name, file in self.weights.items()},
                "profile": self.config.profile,
                "batch_size": self.config.batch_size,
                "pieces": missing,
            }
            run_job(run, directory, spec, self.distributed)
        return [_piece(directory, number) for number, _, _ in pieces]


def run(spec: Path, world: World) -> None:
    """Collect this rank's share of the missing pieces."""
    values = json.loads(spec.read_text(encoding="utf-8"))
    directory = Path(values["directory"])
    images = open_image_set(Path(values["images"]))
    if len(images) != values["num_images"]:
        raise ValueError(
            f"{images.path} holds {len(images)} images, and held {values['num_images']} a moment "
            "ago: run again when nobody changes it"
        )
    indices = read_arrays(directory / _CHOSEN)["indices"]
    needs = [Need(*need) for need in values["needs"]]
    taps: dict[Any, set[str]] = {}
    for need in needs:
        taps.setdefault(need.extractor, set()).add(need.tap)
    weights = {name: Path(file) for name, file in values["weights"].items()}
    extractors = {
        name: build_extractor(name, weights, values["profile"], world.device) for name in taps
    }
    mine = values["pieces"][world.rank :: world.size]
    num_images = sum(stop - start for _, start, stop in mine)
    bar = progress("evaluate", num_images, disable=not world.is_main)
    for piece, start, stop in mine:
        running = RunningStatistics(needs)
        starts = range(start, stop, values["batch_size"])
        wanted = (indices[first : min(first + starts.step, stop)] for first in starts)
        batches = read_ahead(images.read, wanted, world.device)
        for first, batch in zip(starts, batches, strict=True):
            for name, extractor in extractors.items():
                running.update(name, extractor(batch, taps[name]), first)
            bar.update(len(batch))
        write_arrays(_piece(directory, piece), running.state())
    bar.close()


def _cut(num_images: int, batch_size: int) -> list[tuple[int, int, int]]:
    """Return number, start and stop of each piece, a whole number of batches but for the last."""
    num_batches = math.ceil(num_images / batch_size)
    size = batch_size * max(_BATCHES_PER_PIECE, math.ceil(num_batches / _NUM_PIECES))
    starts = range(0, num_images, size)
    return [(number, start, min(start + size, num_images)) for number, start in enumerate(starts)]


def _piece(directory: Path, number: int) -> Path:
    return directory / f"piece-{number:02d}.npz"
