"""Nodes of the features stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.config import TeacherConfig

if TYPE_CHECKING:
    from selfdistill.data.shards import Shards
else:  # Kedro reads the hints of the parameters and must be able to resolve all of them
    Shards = Any


def cache_features(
    images: Shards,
    teacher: TeacherConfig,
    distributed: DistributedConfig,
    scratch: Path,
) -> Shards:
    """Encode each image, as it is and mirrored, with the frozen teacher.

    Args:
        images: uint8 images, (H, W, 3) each.
        teacher: The teacher.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.

    Returns:
        float16 patch tokens, (2, L, D) an image: as it is, mirrored; row by row with the images.
    """
    from selfdistill.pipelines.features.encode import encode_images

    return encode_images(images, teacher, distributed, scratch)
