"""A row's training as a job: what determines it, where it is kept, how it ends."""

import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from selfdistill.data.loader import Loader
from selfdistill.data.shards import Shards
from selfdistill.distributed import World, launch
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import (
    fingerprint,
    job_directory,
    publish_directory,
    source_fingerprint,
    temporary_name,
    write_json,
)
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.loop import CURVES, fit

logger = logging.getLogger(__name__)

_SCIENCE = ("data", "diffusion", "draws.py", "methods", "networks", "pipelines/train")


def train_row(
    images: Shards,
    features: Shards,
    network: NetworkConfig,
    method: MethodConfig,
    train: TrainConfig,
    distributed: DistributedConfig,
    scratch: Path,
) -> Checkpoint:
    """Start the ranks on what is left to train, and return the finished checkpoint.

    The job is known by the fingerprint of the row's parameters, its inputs, the code of the
    science packages and torch's version; the machine is not part of it.
    """
    configs = {
        "network": network.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    inputs = {"images": images.fingerprint, "features": features.fingerprint}
    code = {"source": source_fingerprint(*_SCIENCE), "torch": torch.__version__}
    job = fingerprint(configs, inputs, code)
    directory = job_directory(scratch, job)
    if not (directory / "finished").is_dir():
        spec = directory / "spec.json"
        write_json(
            spec,
            {
                **configs,
                "images": str(images.path),
                "features": str(features.path),
                "about": {"fingerprint": job, "inputs": inputs, "code": code, **_git_state()},
            },
        )
        launch(run, spec, distributed)
    return Checkpoint.open(directory / "finished")


def run(spec: Path, world: World) -> None:
    """Train on this rank, and let rank 0 write the finished checkpoint."""
    job: dict[str, Any] = json.loads(spec.read_text(encoding="utf-8"))
    directory = spec.parent
    network = NetworkConfig.model_validate(job["network"])
    method_config = MethodConfig.model_validate(job["method"])
    config = TrainConfig.model_validate(job["train"])
    torch.manual_seed(config.seed)
    method = build_method(network, method_config).to(world.device)
    loader = Loader(
        images=Shards.open(Path(job["images"])),
        features=Shards.open(Path(job["features"])),
        seed=config.seed,
        flip=config.flip,
        device=world.device,
    )
    nimg = fit(method, loader, config, world, directory)
    if world.is_main:
        unfinished = temporary_name(directory / "finished")
        Checkpoint.write(
            unfinished,
            method,
            network_config=network,
            method_config=method_config,
            about={"train": job["train"], "nimg": nimg, **job["about"]},
        )
        for file in (CURVES, "speed.jsonl"):
            shutil.copyfile(directory / file, unfinished / file)
        publish_directory(unfinished, directory / "finished")
        (directory / "state.pt").unlink(missing_ok=True)
    world.barrier()


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
