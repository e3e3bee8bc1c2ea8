"""Teacher tokens, shard by shard: feature shard k holds the rows of image shard k."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from tqdm import tqdm

from selfdistill.data.shards import Shards, ShardWriter, finalize, missing_shards
from selfdistill.distributed import World, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import (
    check_space,
    fingerprint,
    job,
    source_fingerprint,
)
from selfdistill.networks.config import TeacherConfig
from selfdistill.networks.dinov3 import Teacher

logger = logging.getLogger(__name__)


def encode_images(
    images: Shards, teacher: TeacherConfig, distributed: DistributedConfig, scratch: Path
) -> Shards:
    """Start the ranks that encode what is missing, then write the manifest.

    Raises:
        FileNotFoundError: If the teacher's weights cannot be had.
        ValueError: If the teacher does not fit the images, or the disk not the features.
    """
    network = Teacher(teacher, images.shape[0])  # before the ranks: it may have to be downloaded
    shape = (2, *network.shape)
    config = teacher.model_dump(mode="json")
    origin: dict[str, Any] = {
        "images": images.fingerprint,
        "teacher": {**config, "weights_sha256": network.digest()},
        "source": source_fingerprint("networks/dinov3.py", "pipelines/features/encode.py"),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    decisive = {**origin, "teacher": {**origin["teacher"], "batch_size": None}}
    num_shards = len(images.header["shards"])
    with job(scratch, fingerprint(decisive)) as directory:
        if missing := missing_shards(directory, num_shards):
            num_images = sum(images.shard_sizes[shard] for shard in missing)
            check_space(directory, 2 * math.prod(shape) * num_images, "the teacher's features")
            logger.info("Encoding %d of %d shards", len(missing), num_shards)
            spec = {"images": str(images.path), "teacher": config, "shards": missing}
            run_job(run, directory, spec, distributed)
        return finalize(
            directory,
            num_shards=num_shards,
            shape=shape,
            dtype="float16",
            class_names=images.class_names,
            about=origin,
        )


def run(spec: Path, world: World) -> None:
    """Encode this rank's share of the missing shards."""
    values = json.loads(spec.read_text(encoding="utf-8"))
    images, directory = Shards.open(Path(values["images"])), Path(values["directory"])
    config = TeacherConfig.model_validate(values["teacher"])
    teacher = Teacher(config, images.shape[0]).to(world.device)
    shape = (2, *teacher.shape)
    starts = np.cumsum([0, *images.shard_sizes])
    mine = values["shards"][world.rank :: world.size]
    for shard in tqdm(mine, "features", unit="shard", disable=not world.is_main):
        with ShardWriter(directory, shard, shape, "float16") as writer:
            for start in range(starts[shard], starts[shard + 1], config.batch_size):
                rows = np.arange(start, min(start + config.batch_size, starts[shard + 1]))
                pixels = torch.from_numpy(images.read(rows)).to(world.device)
                x = pixels.permute(0, 3, 1, 2).float()
                tokens = torch.stack((teacher(x), teacher(x.flip(-1))), dim=1)  # (n, 2, L, D)
                for row, value in zip(rows, tokens.half().cpu().numpy(), strict=True):
                    writer.append(images.keys[row], int(images.labels[row]), value)
