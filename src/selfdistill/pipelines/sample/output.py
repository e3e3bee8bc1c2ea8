"""Images that a checkpoint makes, in shards, over all ranks: what sampling and decoding share.

Shard k holds the images from k * shard_size on. What an image is depends on its number alone, so
neither ranks nor batches matter, and a killed job goes on at the first missing shard.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfdistill.data.pixels import QUANTISATION
from selfdistill.data.shard_job import ShardJob, share_of
from selfdistill.data.shard_writer import ShardWriter
from selfdistill.data.shards import Shards
from selfdistill.distributed import World, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import fingerprint
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.method import Method
from selfdistill.methods.registry import code_of
from selfdistill.progress import progress
from selfdistill.sources import Code

logger = logging.getLogger(__name__)


class Images(NamedTuple):
    """Some images that a network made.

    Attributes:
        pixels: (N, H, W, 3), uint8.
        labels: Class indices, (N,).
        keys: Their names in the manifest.
    """

    pixels: Tensor
    labels: Sequence[int]
    keys: Sequence[str]


class Output(NamedTuple):
    """What a job makes.

    Attributes:
        settings: All that determines the images beside checkpoint and code, as JSON values.
        num_images: Number of images.
        side: Of the square images, pixels.
        shard_size: Images a shard.
        batch_size: Images a rank makes at once.
        class_names: Names of the classes in the order of the labels.
        about: Provenance for the manifest, beside that of the checkpoint.
        modules: Further code that makes them, dotted names.
    """

    settings: dict[str, Any]
    num_images: int
    side: int
    shard_size: int
    batch_size: int
    class_names: Sequence[str]
    about: Mapping[str, Any]
    modules: Sequence[str] = ()


def make_shards(
    run: Callable[[Path, World], None],
    checkpoint: Checkpoint,
    output: Output,
    spec: Mapping[str, Any],
    distributed: DistributedConfig,
    scratch: Path,
) -> Shards:
    """Start the ranks on the missing shards, then write the manifest.

    Args:
        run: What a rank does: it calls `write_share`.
        checkpoint: What makes the images.
        output: What is made.
        spec: What `run` needs to know, as JSON values, beside what `write_share` does.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.
    """
    about = checkpoint.about
    of_row = code_of(about["network"]["name"], about["method"]["name"])
    code = {
        "source": Code([run.__module__, *of_row, *output.modules]).fingerprint(),
        "torch": torch.__version__,
    }

    def make(directory: Path, numbers: Sequence[int]) -> None:
        logger.info("Generating %d shards", len(numbers))
        sizes = output.num_images, output.shard_size, output.batch_size, output.side
        share = {"checkpoint": str(checkpoint.path), "shards": list(numbers), "sizes": sizes}
        run_job(run, directory, {**share, **spec}, distributed)

    return ShardJob(
        name=fingerprint(output.settings, about["sha256"], code),
        what="images",
        sizes=[
            min(output.shard_size, output.num_images - first)
            for first in range(0, output.num_images, output.shard_size)
        ],
        shape=(output.side, output.side, 3),
        dtype="uint8",
        make=make,
        class_names=output.class_names,
        about={
            "checkpoint": about["sha256"],
            "nimg": about["nimg"],
            **output.about,
            "quantisation": QUANTISATION,
            "code": code,
        },
    ).build(scratch)


def write_share(
    spec: Path, world: World, start: Callable[[dict[str, Any], Method], Callable[[range], Images]]
) -> None:
    """Write this rank's share of the missing shards.

    Args:
        spec: The job's JSON file.
        world: This rank.
        start: Takes the content of `spec` and the method, on the rank's device, and gives the
            function that makes the images of some numbers.
    """
    values = json.loads(spec.read_text(encoding="utf-8"))
    num_images, shard_size, batch_size, side = values["sizes"]
    checkpoint = Checkpoint.open(Path(values["checkpoint"]))
    make = start(values, checkpoint.load(world.device))
    directory = Path(values["directory"])
    mine = [
        range(shard * shard_size, min((shard + 1) * shard_size, num_images))
        for shard in share_of(values["shards"], directory, world)
    ]
    bar = progress("sample", sum(map(len, mine)), disable=not world.is_main)
    for numbers in mine:
        shard = numbers.start // shard_size
        with ShardWriter(directory, shard, (side, side, 3), "uint8") as writer:
            for first in numbers[::batch_size]:
                images = make(range(first, min(first + batch_size, numbers.stop)))
                records: np.ndarray = images.pixels.cpu().numpy()
                for key, label, record in zip(images.keys, images.labels, records, strict=True):
                    writer.append(key, int(label), np.ascontiguousarray(record))
                bar.update(len(records))
    bar.close()
