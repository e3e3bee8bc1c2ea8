"""Samples of a method that is being trained, and their distance from real images.

What an image is depends on its number, and batches and pieces on the number of images alone. All
ranks ask the network together and equally often, which those that hold rows of it rely on: in a
round each rank makes a piece, or images that nobody looks at. Pieces are merged in their order, so
any number of ranks that hold the same weights finds the same number.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from selfdistill.base_config import as_written
from selfdistill.data.shards import Shards
from selfdistill.diffusion.config import SolverConfig
from selfdistill.distributed import World
from selfdistill.draws import Draws
from selfdistill.files import read_arrays, write_arrays
from selfdistill.methods.method import Method
from selfdistill.metrics.config import METRICS, Profile
from selfdistill.metrics.definitions import DEFINITIONS, accepted_sha256
from selfdistill.metrics.extractors import Extractor, build_extractor
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.metric import Need
from selfdistill.metrics.statistics import RunningStatistics, Statistics
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.networks.vae import pixels_of
from selfdistill.networks.vae_config import Decoder, decoder_of
from selfdistill.pipelines.train.best import Selection
from selfdistill.pipelines.train.progress_pictures import picture_at, save_strip
from selfdistill.pipelines.train.selection_config import SelectionConfig

_NUM_PIECES = 24  # divides among 1, 2, 3, 4, 6, 8, 12 or 24 ranks


def prepare(
    images: Shards,
    selection: Any,
    sampling: Any,
    reference: Mapping[str, np.ndarray],
    profile: str,
    latents: Any,
    vae: Any,
    weights: Mapping[str, Path],
) -> Selection:
    """Check what a row's best state is selected by, before anything is trained.

    Args:
        images: What the row is trained on: images or latents.
        selection: `SelectionConfig`, as written.
        sampling: The sampling that it names, as written: its solver is used.
        reference: What the evaluate stage knows of the real images.
        profile: Of the extractor, as in `evaluation`.
        latents: The set of latents that the row lives in, as written; None: it makes images.
        vae: What decodes them, as written.
        weights: Files by name; that of the extractor is among them.

    Raises:
        ValueError: If the reference is of other images or extractors, or does not know what the
            metric needs, or a file is not the network that defines the extractor.
    """
    config = SelectionConfig.model_validate(as_written(selection))
    need, decoder = _need_of(config.metric), decoder_of(latents, vae)
    digest = accepted_sha256(need.extractor, weights)
    extractor = {
        "weights_sha256": digest or TinyExtractor().weights_sha256,
        "resize": DEFINITIONS[need.extractor].resize,
        **({"profile": profile} if need.extractor == "inception_2015" else {}),
    }
    _check_reference(reference, images, config.metric, extractor)
    known = Statistics.from_arrays(reference).moments
    arrays = Statistics({need: known[need]}).arrays() if need in known else {}
    taken = DEFINITIONS[need.extractor].weights
    return Selection(
        settings={
            **config.model_dump(mode="json", exclude={"batch_size", "sampling"}),
            "solver": SolverConfig.of(as_written(sampling)).model_dump(mode="json"),
            "extractor": extractor,
            **({} if decoder is None else {"decoder": decoder.model_dump(mode="json")}),
        },
        inputs={"selection_reference": _digest(arrays)} if arrays else {},
        machine={
            "sampling": config.sampling,
            "batch_size": config.batch_size,
            "profile": profile,
            "weights": {taken.name: str(weights[taken.name])} if taken else {},
        },
        reference=arrays,
        modules=[__name__],
    )


class SampleJudge:
    """Measures a method by samples; see `best.Judge`.

    Args:
        spec: Settings and machine of a `Selection` together, and "reference", the file of its
            arrays; as JSON values.
        class_names: Names of the classes in the order of the labels.
        world: This rank.
        directory: Where ranks leave their statistics for rank 0.
    """

    def __init__(
        self, spec: Mapping[str, Any], class_names: Sequence[str], world: World, directory: Path
    ) -> None:
        self.metric, self.nimg = str(spec["metric"]), int(spec["nimg"])
        self.better = METRICS[self.metric].better
        self._spec, self._world, self._directory = spec, world, directory
        self._num_images, self._batch_size = spec["num_images"], spec["batch_size"]
        self._num_classes = len(class_names)
        self._solver = SolverConfig.model_validate(spec["solver"])
        self._need = _need_of(self.metric)

    @torch.no_grad()
    def measure(
        self, nimg: int, joint: nn.Module, method: Method, stopping: Callable[[], bool]
    ) -> float | None:
        """Return the metric of the method's samples, to ten digits; None: a rank has to stop.

        The first images of each evaluation, always of the same noise, are kept as a picture.
        Networks of the metric are there only meanwhile: training has the memory otherwise.
        """
        device = self._world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            weights = {name: Path(file) for name, file in self._spec["weights"].items()}
            profile = cast(Profile, self._spec["profile"])
            extractor = build_extractor(self._need.extractor, weights, profile, device)
            decoder = self._spec.get("decoder")
            to_pixels = pixels_of(Decoder.model_validate(decoder) if decoder else None, device)
            make = partial(self._samples, joint, method)
            picture = picture_at(self._directory, nimg)
            if not self._collect(make, to_pixels, extractor, stopping, picture):
                return None
        value = self._value() if self._world.is_main else 0.0
        # A sum with zeros is exact; float64 on the CPU, as what ranks say of signals.
        total = self._world.sum(torch.tensor(value, dtype=torch.float64))
        return float(f"{float(total):.10g}")

    def _collect(
        self,
        make: Callable[[Tensor], Tensor],
        to_pixels: Callable[[Tensor], Tensor],
        extractor: Extractor,
        stopping: Callable[[], bool],
        picture: Path,
    ) -> bool:
        """Have all ranks write their pieces; return whether they did, and were not told to stop."""
        size, pieces = self._batch_size, self._pieces()
        for first in range(0, len(pieces), self._world.size):
            number = first + self._world.rank
            piece = pieces[number] if number < len(pieces) else range(0)
            running = RunningStatistics([self._need])
            for start in range(0, len(pieces[first]), size):  # no later piece is longer
                if self._world.any(stopping()):
                    return False
                numbers = torch.arange(size) + (piece or pieces[first]).start + start
                x0, wanted = make(numbers), piece[start : start + size]
                if wanted:
                    pixels = to_pixels(x0[: len(wanted)]).cpu().contiguous().numpy()
                    if wanted.start == 0:
                        save_strip(pixels, picture)
                    features = extractor(pixels, {self._need.tap})
                    running.update(self._need.extractor, features, wanted.start)
            if piece:
                write_arrays(self._file(number), running.state())
        self._world.barrier()
        return True

    def _samples(self, joint: nn.Module, method: Method, numbers: Tensor) -> Tensor:
        """Return samples (N, *data_shape()) as the sample stage makes them."""
        index = numbers.to(self._world.device)
        draws = Draws(self._spec["seed"], index)
        labels = index % self._num_images % self._num_classes

        def sample(eps: Tensor) -> Tensor:
            return method.sample(eps, labels, self._solver, draws)

        samples: Tensor = joint(sample, draws.normal("sample", *method.noise_shape()))
        return samples

    def _value(self) -> float:
        """Merge the pieces of all ranks in order, delete them, and return the metric."""
        merged, files = RunningStatistics([self._need]), map(self._file, range(len(self._pieces())))
        for file in files:
            merged.merge(RunningStatistics.from_state(read_arrays(file)))
            file.unlink()
        statistics = merged.finish()
        if self._need.kind == "scores":
            return statistics.scores[self._need]
        reference = Statistics.from_arrays(read_arrays(Path(self._spec["reference"])))
        return frechet_distance(statistics.moments[self._need], reference.moments[self._need])

    def _pieces(self) -> list[range]:
        """Return the numbers of each piece's images: whole batches, but for the last one."""
        num_batches = math.ceil(self._num_images / self._batch_size)
        length = self._batch_size * math.ceil(num_batches / _NUM_PIECES)
        numbers = range(self._num_images)
        return [numbers[start : start + length] for start in numbers[::length]]

    def _file(self, number: int) -> Path:
        return self._directory / f"selection-{number:02d}.npz"


def _need_of(metric: str) -> Need:
    need = METRICS[metric].need
    assert need is not None  # as `SelectionConfig` has checked
    return need


def _check_reference(
    reference: Mapping[str, np.ndarray], images: Shards, metric: str, extractor: Mapping[str, Any]
) -> None:
    """Refuse statistics of other images, of another extractor, or without what is needed."""
    about, need = json.loads(str(reference["about"])), _need_of(metric)
    of = {images.fingerprint, images.about.get("images")}  # of latents: what they were made of
    made = about["extractors"].get(need.extractor)
    if about["images"] not in of:
        fault = f"was made of other images ({about['images']}) than {images.path}"
    elif METRICS[metric].alone:
        return
    elif need not in Statistics.from_arrays(reference):
        fault = f"does not know {need.tap} of {need.extractor}, which {metric} needs"
    elif made and {**made, "device": None} != {**extractor, "device": None}:
        fault = f"was made with other weights or another profile of {need.extractor}"
    else:
        return
    raise ValueError(f"selection: the reference {fault}; run the node describe_reference again")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of arrays and their names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
