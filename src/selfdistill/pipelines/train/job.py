"""A row's training as a job: what determines it, where it is kept, how it ends."""

import json
import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfdistill.data.loader import Loader
from selfdistill.data.shards import Shards
from selfdistill.data.tokens import packed_dim
from selfdistill.determinism import deterministic
from selfdistill.distributed import World, num_ranks, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import (
    alone,
    fingerprint,
    job,
    sha256_once,
    temporary_name,
    write_arrays,
)
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method, code_of
from selfdistill.methods.start import digest_of
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.prompts import text_digest
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.pipelines.train.best import PICTURES, Best, Selection
from selfdistill.pipelines.train.config import MACHINE, NEUTRAL, TrainConfig
from selfdistill.pipelines.train.curves import CURVES
from selfdistill.pipelines.train.loop import fit
from selfdistill.pipelines.train.selecting import judge_of
from selfdistill.sources import Code

logger = logging.getLogger(__name__)

_REFERENCE = "reference.npz"


def train_row(
    images: Shards,
    features: Shards | None,
    network: NetworkConfig,
    method: MethodConfig,
    train: TrainConfig,
    distributed: DistributedConfig,
    scratch: Path,
    weights: Mapping[str, Path],
    teacher: TeacherConfig | None = None,
    start: Checkpoint | Path | None = None,
    taught_by: Checkpoint | None = None,
    selection: Selection | None = None,
) -> Checkpoint:
    """Start the ranks on what is left to train, and return the finished checkpoint.

    The job is known by the fingerprint of the row's parameters, its inputs, the code that it runs
    and torch's version; the machine is not part of it, nor is the commit: the same code at another
    commit makes the same checkpoint.

    Args:
        images: uint8 images, (H, W, 3) each, or moments of latents, (O, 2C, h, w) each.
        features: The teacher's tokens of the same images; None if the objective needs none, or
            `teacher` makes them while training.
        network: The architecture.
        method: The objective.
        train: The row's training.
        distributed: The machine.
        scratch: Where states and the finished checkpoint are kept.
        weights: Files of the frozen networks that the objective names, by name.
        teacher: A teacher that is at work beside the training.
        start: What the network starts as: a checkpoint, or a file of published weights.
        taught_by: The checkpoint whose network it learns from; None: what it starts as.
        selection: What the best state is selected by; None: the last one is the checkpoint.

    Returns:
        The finished checkpoint, in the scratch folder.

    Raises:
        ValueError: If the features do not fit the network, or are absent and needed, or the share
            of the images that is seen is less than a batch.
    """
    if features is None and teacher is None and method.root.needs_features:
        raise ValueError(
            "the objective aligns with a teacher: it needs features of the images, or the teacher"
        )
    if features is not None:
        _check_features(features, network)
    if train.data_share < 1 and train.data_share * len(images) < train.batch_size:
        raise ValueError(
            f"train.data_share {train.data_share} of {len(images):,} images is less than a batch "
            f"of {train.batch_size}: raise it"
        )
    configs = {
        "network": network.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    inputs: dict[str, Any] = {"images": images.fingerprint}
    inputs |= {} if features is None else {"features": features.fingerprint}
    inputs |= {} if teacher is None else {"teacher": _identity(teacher, images)}
    inputs |= {} if start is None else {"start": digest_of(start)}
    inputs |= {} if taught_by is None else {"taught_by": digest_of(taught_by)}
    text = getattr(network.root, "text", None)  # of a network that reads prompts
    inputs |= {} if text is None else {"text": text_digest(text)}
    inputs |= {name: sha256_once(file) for name, file in sorted(weights.items())}
    modules = [__name__, *code_of(network.root.name, method.root.name)]
    settings: dict[str, Any] = {}
    if selection is not None:
        inputs |= selection.inputs
        modules += selection.modules
        settings = {"selection": selection.settings}
    code = {"source": Code(modules).fingerprint(), "torch": torch.__version__}
    drops = getattr(network.root, "dropout", 0) > 0  # by micro-batch
    machine = NEUTRAL if drops or method.root.depends_on_micro_batches else MACHINE
    decisive = {**configs, "train": train.model_dump(mode="json", exclude=machine), **settings}
    name = fingerprint(decisive, inputs, code)
    with job(scratch, name) as directory:
        finished = _finished(directory)
        if finished.is_dir():
            logger.info("Found the finished training %s", finished)
        else:
            paths: dict[str, Any] = {"images": str(images.path)}
            paths["features"] = str(features.path) if features is not None else None
            paths["weights"] = {name: str(file) for name, file in weights.items()}
            paths["teacher"] = teacher.model_dump(mode="json") if teacher is not None else None
            paths["start"] = None if start is None else str(_path_of(start))
            paths["taught_by"] = None if taught_by is None else str(taught_by.path)
            paths["strict"] = distributed.strict_reads
            paths["num_threads"] = max(1, distributed.num_workers // num_ranks(distributed))
            about = {"fingerprint": name, "inputs": inputs, "code": code, **settings}
            paths["selection"] = None if selection is None else _told(selection, directory)
            run_job(run, directory, {**configs, **paths, "about": about}, distributed)
        shutil.rmtree(directory)
        return Checkpoint.open(finished)


def run(spec: Path, world: World) -> None:
    """Train on this rank, and let rank 0 write the finished checkpoint.

    Ranks that are started when it is there, because one was lost at the very end, do nothing.
    """
    values: dict[str, Any] = json.loads(spec.read_text(encoding="utf-8"))
    directory = Path(values["directory"])
    with alone(directory / f"rank{world.rank}.lock"):  # of an orphan of a killed run
        if not world.any(_finished(directory).is_dir()):
            _train(values, directory, world)
    world.barrier()


def _train(values: dict[str, Any], directory: Path, world: World) -> None:
    """Train to the end, and write the finished checkpoint on rank 0."""
    network = NetworkConfig.model_validate(values["network"])
    method_config = MethodConfig.model_validate(values["method"])
    config = TrainConfig.model_validate(values["train"])
    torch.manual_seed(config.seed)
    weights = {name: Path(file) for name, file in values["weights"].items()}
    start, taught_by = (
        Path(values[name]) if values[name] else None for name in ("start", "taught_by")
    )
    method = build_method(network, method_config, weights, start, taught_by)
    images, features = (
        Shards.open(Path(values[name]), strict=values["strict"]) if values[name] else None
        for name in ("images", "features")
    )
    assert images is not None
    method.name_classes(images.class_names)
    teacher = None
    if values["teacher"]:
        teacher_config = TeacherConfig.model_validate(values["teacher"])
        teacher = Teacher(teacher_config, images.shape[0]).to(world.device)
    loader = Loader(
        images=images,
        features=features,
        seed=config.seed,
        flip=config.flip,
        device=world.device,
        teacher=teacher,
        num_threads=values["num_threads"],
        share=config.data_share,
    )
    best = None
    if values["selection"]:
        judge = judge_of(values["selection"], images.class_names, world, directory)
        best = Best(judge, directory, config.total_nimg, world)
    nimg = fit(method, loader, config, world, directory, best)
    weights_kept = world.state_of(method) if best is None else best.weights()
    if world.is_main:
        unfinished = temporary_name(_finished(directory))
        Checkpoint.write(
            unfinished,
            method,
            network_config=network,
            method_config=method_config,
            about={
                "train": config.model_dump(mode="json", exclude=NEUTRAL),
                "nimg": nimg,
                **({} if best is None else {"selected": best.about()}),
                **values["about"],
            },
            curves=directory / CURVES,
            weights=weights_kept,
        )
        if (directory / PICTURES).is_dir():
            shutil.copytree(directory / PICTURES, unfinished / PICTURES)
        unfinished.rename(_finished(directory))


def _told(selection: Selection, directory: Path) -> dict[str, Any]:
    """Return what ranks are told of a selection; the statistics go to a file of the job's."""
    file = directory / _REFERENCE
    write_arrays(file, selection.reference)
    return {**selection.settings, **selection.machine, "reference": str(file)}


def _check_features(features: Shards, network: NetworkConfig) -> None:
    """Refuse features that are not one token a patch of the width that the network predicts."""
    assert isinstance(network.root, DSDViTConfig)  # the only one that learns from a teacher
    dim = network.root.teacher_dim
    width = packed_dim(dim) if features.dtype == np.int8 else dim
    if features.shape[1:] != (network.root.num_tokens, width):
        raise ValueError(
            f"{features.path} holds tokens of shape {list(features.shape[1:])}, the network needs "
            f"{[network.root.num_tokens, width]}: patch_size and teacher must give one token a "
            "patch"
        )


def adopt_start(
    start: Checkpoint | Path, network: NetworkConfig, method: MethodConfig, scratch: Path
) -> Checkpoint:
    """Return a checkpoint of a row's network as it starts; see `nodes.adopt`.

    Raises:
        FileNotFoundError, ValueError: If the start is not there, damaged, or of another network.
    """
    code = {"source": Code([__name__, *code_of(network.root.name, method.root.name)]).fingerprint()}
    configs = {"network": network.model_dump(mode="json"), "method": method.model_dump(mode="json")}
    inputs = {"start": digest_of(start)}
    with deterministic("cpu"):
        built = build_method(network, method, start=_path_of(start))
    return Checkpoint.write(
        scratch / "adopted",
        built,
        network_config=network,
        method_config=method,
        about={
            "nimg": start.about["nimg"] if isinstance(start, Checkpoint) else 0,
            "fingerprint": fingerprint(configs, inputs, code),
            "inputs": inputs,
            "code": {**code, "torch": torch.__version__},
        },
    )


def _path_of(start: Checkpoint | Path) -> Path:
    return start.path if isinstance(start, Checkpoint) else start


def _identity(config: TeacherConfig, images: Shards) -> dict[str, Any]:
    """Return all that determines the tokens of a teacher that is at work while training."""
    said = config.model_dump(mode="json", exclude={"batch_size", "cache", "weights", "seed"})
    return {
        **said,
        "weights_sha256": Teacher(config, images.shape[0]).digest(),
        "timm": version("timm"),
    }


def _finished(directory: Path) -> Path:
    """Return where a job's finished checkpoint stands until the catalog fetches it."""
    return directory.with_suffix(".finished")
