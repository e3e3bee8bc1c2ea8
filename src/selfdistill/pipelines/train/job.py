"""A row's training as a job: what determines it, where it is kept, how it ends."""

import json
import logging
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from selfdistill.data.loader import Loader
from selfdistill.data.shards import Shards
from selfdistill.data.tokens import packed_dim
from selfdistill.distributed import World, num_ranks, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import (
    alone,
    fingerprint,
    job,
    sha256_once,
    source_fingerprint,
    temporary_name,
)
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig, TeacherConfig
from selfdistill.networks.dinov3 import Teacher
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.curves import CURVES
from selfdistill.pipelines.train.loop import fit

logger = logging.getLogger(__name__)

_SCIENCE = (
    "data/latents.py", "data/loader.py", "data/photometric.py", "data/pixels.py",
    "data/shards.py", "data/tokens.py", "diffusion",
    "draws.py", "methods", "metrics/moments.py", "metrics/rank.py", "networks", "pipelines/train",
)  # fmt: skip
# What changes memory or safety, and not the result.
_MACHINE = {"micro_batch_size", "recompute_activations", "checkpoint_nimg"}


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
) -> Checkpoint:
    """Start the ranks on what is left to train, and return the finished checkpoint.

    The job is known by the fingerprint of the row's parameters, its inputs, the code of the
    science packages and torch's version; the machine is not part of it. `weights` are the files of
    the frozen networks that the method names. The teacher's tokens are read from `features`, or
    made by `teacher` while training.

    Raises:
        ValueError: If the features do not fit the network, or are absent and needed.
    """
    if features is None and teacher is None and method.root.needs_features:
        raise ValueError(
            "the objective aligns with a teacher: it needs features of the images, or the teacher"
        )
    if features is not None:
        _check_features(features, network)
    configs = {
        "network": network.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    inputs: dict[str, Any] = {"images": images.fingerprint}
    inputs |= {} if features is None else {"features": features.fingerprint}
    inputs |= {} if teacher is None else {"teacher": _identity(teacher, images)}
    inputs |= {name: sha256_once(file) for name, file in sorted(weights.items())}
    code = {"source": source_fingerprint(*_SCIENCE), "torch": torch.__version__}
    decisive = {**configs, "train": train.model_dump(mode="json", exclude=_MACHINE)}
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
            paths["strict"] = distributed.strict_reads
            paths["num_threads"] = max(1, distributed.num_workers // num_ranks(distributed))
            about = {"fingerprint": name, "inputs": inputs, "code": code, **_git_state()}
            run_job(run, directory, {**configs, **paths, "about": about}, distributed)
        shutil.rmtree(directory)
        return Checkpoint.open(finished)


def run(spec: Path, world: World) -> None:
    """Train on this rank, and let rank 0 write the finished checkpoint."""
    values: dict[str, Any] = json.loads(spec.read_text(encoding="utf-8"))
    directory = Path(values["directory"])
    network = NetworkConfig.model_validate(values["network"])
    method_config = MethodConfig.model_validate(values["method"])
    config = TrainConfig.model_validate(values["train"])
    torch.manual_seed(config.seed)
    weights = {name: Path(file) for name, file in values["weights"].items()}
    method = build_method(network, method_config, weights).to(world.device)
    images, features = (
        Shards.open(Path(values[name]), strict=values["strict"]) if values[name] else None
        for name in ("images", "features")
    )
    assert images is not None
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
    )
    with alone(directory.with_suffix(f".rank{world.rank}")):  # of an orphan of a killed run
        nimg = fit(method, loader, config, world, directory)
        if world.is_main:
            unfinished = temporary_name(_finished(directory))
            Checkpoint.write(
                unfinished,
                method,
                network_config=network,
                method_config=method_config,
                about={"train": values["train"], "nimg": nimg, **values["about"]},
                curves=directory / CURVES,
            )
            unfinished.rename(_finished(directory))
    world.barrier()


def _check_features(features: Shards, network: NetworkConfig) -> None:
    """Refuse features that are not one token a patch of the width that the network predicts."""
    dim = network.root.teacher_dim
    width = packed_dim(dim) if features.dtype == np.int8 else dim
    if features.shape[1:] != (network.root.num_tokens, width):
        raise ValueError(
            f"{features.path} holds tokens of shape {list(features.shape[1:])}, the network needs "
            f"{[network.root.num_tokens, width]}: patch_size and teacher must give one token a "
            "patch"
        )


def _identity(config: TeacherConfig, images: Shards) -> dict[str, Any]:
    """Return all that determines the tokens of a teacher that is at work while training."""
    said = config.model_dump(mode="json", exclude={"batch_size", "cache", "weights", "seed"})
    return {
        **said,
        "weights_sha256": Teacher(config, images.shape[0]).digest(),
        "timm": timm.__version__,
    }


def _finished(directory: Path) -> Path:
    """Return where a job's finished checkpoint stands until the catalog fetches it."""
    return directory.with_suffix(".finished")


def _git_state() -> dict[str, Any]:
    """Return the commit of the source tree and whether it was edited; empty outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "git_sha": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--", ".")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
