"""Real images, encoded and decoded: what a checkpoint keeps of them, and what it loses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfdistill.data.pixels import dequantise, quantise
from selfdistill.data.shards import Shards
from selfdistill.distributed import World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.method import Autoencoder, Method
from selfdistill.pipelines.sample.config import ReconstructionConfig
from selfdistill.pipelines.sample.output import Images, Output, make_shards, write_share


def reconstruct_images(
    checkpoint: Checkpoint,
    images: Shards,
    config: ReconstructionConfig,
    distributed: DistributedConfig,
    scratch: Path,
) -> Shards:
    """Return the images as the checkpoint's autoencoder gives them back, in their order.

    Raises:
        ValueError: If the checkpoint's method has no encoder of its own.
    """
    about = {"reconstruction": config.model_dump(mode="json"), "images": images.fingerprint}
    output = Output(
        settings={"images": images.fingerprint, "shard_size": config.shard_size},
        num_images=len(images),
        side=images.shape[0],
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        class_names=images.class_names,
        about=about,
    )
    spec = {"images": str(images.path)}
    return make_shards(run, checkpoint, output, spec, distributed, scratch)


def run(spec: Path, world: World) -> None:
    """Reconstruct this rank's share of the images."""

    def start(values: dict[str, Any], method: Method) -> Callable[[range], Images]:
        if not isinstance(method, Autoencoder):
            raise ValueError(
                f"{values['checkpoint']} has no encoder of its own: remove the row's reconstruction"
            )
        images = Shards.open(Path(values["images"]))

        def make(numbers: range) -> Images:
            indices = np.arange(numbers.start, numbers.stop)
            x0 = dequantise(torch.from_numpy(images.read(indices)).to(world.device))
            x0_pred = method.decode(method.encode(x0))
            return Images(
                quantise(x0_pred),
                images.labels[indices].tolist(),
                [images.keys[i] for i in numbers],
            )

        return make

    write_share(spec, world, start)
