"""Teacher tokens of images: in float16, or in eight bits."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from selfdistill.data.encoding import Encoding, encode_share, encoding_job
from selfdistill.data.shard_job import ShardJob
from selfdistill.data.shards import Shards
from selfdistill.data.tokens import pack_int8, packed_dim
from selfdistill.distributed import World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.sources import Code


def features_job(images: Shards, config: TeacherConfig, distributed: DistributedConfig) -> ShardJob:
    """Return the job of encoding images with a teacher.

    Args:
        images: uint8 images, (H, W, 3) each.
        config: The teacher.
        distributed: The machine.

    Raises:
        FileNotFoundError: If the teacher's weights cannot be had.
        ValueError: If they are others than they should be, or do not fit the images.
    """
    teacher = Teacher(config, images.shape[0])  # before the ranks: it may have to be downloaded
    num_tokens, dim = teacher.shape
    packed = config.cache.dtype == "int8"
    encoding = Encoding(
        shape=(num_tokens, packed_dim(dim) if packed else dim),
        dtype=config.cache.dtype,
        mirrored=config.cache.mirrored,
        batch_size=config.batch_size,
    )
    about = {
        "teacher": {
            **config.model_dump(mode="json", exclude={"batch_size", "weights", "seed"}),
            "weights_sha256": teacher.digest(),
        },
        "source": Code([__name__]).fingerprint(),
        "timm": version("timm"),
    }
    spec = {"teacher": config.model_dump(mode="json")}
    return encoding_job(run, "features", images, encoding, spec, about, distributed)


def run(spec: Path, world: World) -> None:
    """Encode this rank's share of the images."""

    def start(values: dict[str, Any], side: int) -> Callable[[Tensor], Tensor]:
        config = TeacherConfig.model_validate(values["teacher"])
        teacher = Teacher(config, side).to(world.device)
        pack = pack_int8 if config.cache.dtype == "int8" else Tensor.half
        return lambda images: pack(teacher(images))

    encode_share(spec, world, start)
