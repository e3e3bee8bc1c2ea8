"""50,000 images over all ranks: shard k holds the images from k * shard_size on.

Noise and class are functions of the image's number alone, so neither ranks nor batches matter,
and a killed job goes on at the first missing shard.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from selfdistill.data.shards import Shards, ShardWriter, finalize, missing_shards
from selfdistill.distributed import World, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.draws import Draws
from selfdistill.files import fingerprint, job, source_fingerprint
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.pipelines.sample.config import SampleConfig

logger = logging.getLogger(__name__)

QUANTISATION = "floor(clip(127.5 x + 128, 0, 255))"


def quantise(x: Tensor) -> Tensor:
    """Round images in [-1, 1] to uint8, floor(clip(127.5 x + 128, 0, 255)), as DiT and EDM do.

    Args:
        x: (N, 3, H, W).

    Returns:
        (N, H, W, 3), uint8.
    """
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def generate_samples(
    checkpoint: Checkpoint,
    class_names: Sequence[str],
    config: SampleConfig,
    distributed: DistributedConfig,
    scratch: Path,
) -> Shards:
    """Start the ranks on the missing shards, then write the manifest."""
    settings = config.model_dump(mode="json")
    code = {
        "source": source_fingerprint(
            "diffusion", "draws.py", "methods", "networks", "pipelines/sample/generate.py"
        ),
        "torch": torch.__version__,
    }
    num_shards = -(-config.total_images // config.shard_size)
    network = checkpoint.about["network"]
    decisive = config.model_dump(mode="json", exclude={"batch_size"})
    with job(scratch, fingerprint(decisive, checkpoint.about["sha256"], code)) as directory:
        if missing := missing_shards(directory, num_shards):
            logger.info("Generating %d of %d shards", len(missing), num_shards)
            spec = {"checkpoint": str(checkpoint.path), "sample": settings, "shards": missing}
            run_job(run, directory, spec, distributed)
        return finalize(
            directory,
            num_shards=num_shards,
            shape=(network["resolution"], network["resolution"], 3),
            dtype="uint8",
            class_names=class_names,
            about={
                "checkpoint": checkpoint.about["sha256"],
                "nimg": checkpoint.about["nimg"],
                "sample": settings,
                "nfe": config.num_evaluations,
                "quantisation": QUANTISATION,
                "code": code,
            },
        )


def run(spec: Path, world: World) -> None:
    """Generate this rank's share of the missing shards."""
    values = json.loads(spec.read_text(encoding="utf-8"))
    directory = Path(values["directory"])
    config = SampleConfig.model_validate(values["sample"])
    checkpoint = Checkpoint.open(Path(values["checkpoint"]))
    method = checkpoint.load(world.device)
    network = checkpoint.about["network"]
    shape = (network["resolution"], network["resolution"], 3)
    mine = [
        range(shard * config.shard_size, min((shard + 1) * config.shard_size, config.total_images))
        for shard in values["shards"][world.rank :: world.size]
    ]
    bar = tqdm(
        total=sum(len(numbers) for numbers in mine), desc="sample", unit="img", mininterval=1.0,
        disable=not world.is_main,
    )  # fmt: skip
    for of_shard in mine:
        shard = of_shard.start // config.shard_size
        with ShardWriter(directory, shard, shape, "uint8") as writer:
            for start in of_shard[:: config.batch_size]:
                numbers = torch.arange(start, min(start + config.batch_size, of_shard.stop))
                labels = numbers % config.num_images % network["num_classes"]
                draws = Draws(config.seed, numbers.to(world.device))
                eps = draws.normal("sample", *method.noise_shape())
                x = method.sample(eps, labels.to(world.device), config)
                rows: np.ndarray = quantise(x).cpu().numpy()
                for number, label, row in zip(numbers, labels, rows, strict=True):
                    writer.append(f"{number:08d}", int(label), np.ascontiguousarray(row))
                bar.update(len(numbers))
    bar.close()
