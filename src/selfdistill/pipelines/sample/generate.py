"""50,000 images: noise and class are functions of the image's number alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from selfdistill.data.shards import Shards
from selfdistill.distributed import World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.draws import Draws
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.method import Method
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.pipelines.sample.output import Images, Output, make_shards, write_share


def generate_samples(
    checkpoint: Checkpoint,
    class_names: Sequence[str],
    config: SampleConfig,
    distributed: DistributedConfig,
    scratch: Path,
) -> Shards:
    """Return a checkpoint's samples, as many as `config` asks for."""
    settings = config.model_dump(mode="json")
    output = Output(
        settings=config.model_dump(mode="json", exclude={"batch_size"}),
        num_images=config.total_images,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        class_names=class_names,
        about={"sample": settings, "nfe": config.num_evaluations},
    )
    num_classes = checkpoint.about["network"]["num_classes"]
    spec = {"sample": settings, "num_classes": num_classes}
    return make_shards(run, checkpoint, output, spec, distributed, scratch)


def run(spec: Path, world: World) -> None:
    """Generate this rank's share of the missing shards."""

    def start(values: dict[str, Any], method: Method) -> Callable[[range], Images]:
        config = SampleConfig.model_validate(values["sample"])

        def make(numbers: range) -> Images:
            index = torch.tensor(numbers)
            labels = index % config.num_images % values["num_classes"]
            draws = Draws(config.seed, index.to(world.device))
            eps = draws.normal("sample", *method.noise_shape())
            x0 = method.sample(eps, labels.to(world.device), config)
            return Images(x0, labels.tolist(), [f"{number:08d}" for number in numbers])

        return make

    write_share(spec, world, start)
