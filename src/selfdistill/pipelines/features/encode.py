"""Teacher tokens, shard by shard: feature shard k holds the rows of image shard k."""

import json
import logging
from pathlib import Path

import numpy as np
import timm
import torch
from tqdm import tqdm

from selfdistill.data.shards import Shards, ShardWriter, finalize, missing_shards
from selfdistill.distributed import World, launch
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import fingerprint, job_directory, write_json
from selfdistill.networks.config import TeacherConfig
from selfdistill.networks.dinov3 import Teacher

logger = logging.getLogger(__name__)


def encode_images(
    images: Shards, teacher: TeacherConfig, distributed: DistributedConfig, scratch: Path
) -> Shards:
    """Start the ranks that encode what is missing, then write the manifest.

    Raises:
        FileNotFoundError: If the teacher's weights cannot be had.
    """
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    config = teacher.model_dump(mode="json")
    job = fingerprint(config, images.fingerprint, versions)
    directory = job_directory(scratch, job)
    spec = directory / "spec.json"
    write_json(spec, {"images": str(images.path), "directory": str(directory), "teacher": config})
    num_shards = len(images.header["shards"])
    if missing := missing_shards(directory, num_shards):
        logger.info("Encoding %d of %d shards", len(missing), num_shards)
        launch(run, spec, distributed)
    shape = json.loads((directory / "shape.json").read_text(encoding="utf-8"))
    return finalize(
        directory,
        num_shards=num_shards,
        shape=shape,
        dtype="float16",
        class_names=images.class_names,
        about={"teacher": config, "images": images.fingerprint, **versions},
    )


def run(spec: Path, world: World) -> None:
    """Encode this rank's share of the missing shards."""
    job = json.loads(spec.read_text(encoding="utf-8"))
    images, directory = Shards.open(Path(job["images"])), Path(job["directory"])
    config = TeacherConfig.model_validate(job["teacher"])
    teacher = Teacher(config, images.shape[0]).to(world.device)
    shape = (2, *teacher.shape)
    if world.is_main:
        write_json(directory / "shape.json", list(shape))
    starts = np.cumsum([0, *(entry["rows"] for entry in images.header["shards"])])
    missing = missing_shards(directory, len(starts) - 1)
    for shard in tqdm(
        missing[world.rank :: world.size], "features", unit="shard", disable=not world.is_main
    ):
        with ShardWriter(directory, shard, shape, "float16") as writer:
            for start in range(starts[shard], starts[shard + 1], config.batch_size):
                rows = np.arange(start, min(start + config.batch_size, starts[shard + 1]))
                pixels = torch.from_numpy(images.read(rows)).to(world.device)
                x = pixels.permute(0, 3, 1, 2).float()
                tokens = torch.stack((teacher(x), teacher(x.flip(-1))), dim=1)  # (n, 2, L, D)
                for row, value in zip(rows, tokens.half().cpu().numpy(), strict=True):
                    writer.append(images.keys[row], int(images.labels[row]), value)
    world.barrier()
