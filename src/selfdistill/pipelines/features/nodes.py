"""Nodes of the features stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.teacher_config import TeacherConfig

if TYPE_CHECKING:
    from selfdistill.data.shards import Shards
else:  # Kedro reads the hints of the parameters and must be able to resolve all of them
    Shards = Any


def cache_features(
    images: Shards,
    teacher: TeacherConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path | None = None,
) -> Shards:
    """Encode each image with the frozen teacher, going on where an earlier run stopped.

    Args:
        images: uint8 images, (H, W, 3) each.
        teacher: The teacher.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.
        place: Where the features are published; if they are these, nothing is made.

    Returns:
        Patch tokens, float16 (O, L, D) or int8 (O, L, D + 4) an image, row by row with the images;
        O is 1, or 2 with the mirrored image behind.
    """
    from selfdistill.pipelines.features.encode import features_job

    return features_job(images, teacher, distributed).build(scratch, place)


def cache_features_share(
    images: Shards,
    teacher: TeacherConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path | None = None,
) -> None:
    """Make this host's share of the shards that `cache_features` makes.

    Args:
        images: uint8 images, (H, W, 3) each.
        teacher: The teacher.
        distributed: The machine, and which of the hosts it is.
        scratch: Where the unfinished shards are kept, seen by all hosts.
        place: Where the features are published; if they are these, nothing is made.
    """
    from selfdistill.pipelines.features.encode import features_job

    job = features_job(images, teacher, distributed)
    job.build_share(scratch, distributed.host, distributed.num_hosts, place)


def repair_features(
    images: Shards,
    teacher: TeacherConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path,
) -> None:
    """Make the damaged shards of published features anew; do nothing where there are none.

    Args:
        images: The whole images.
        teacher: The teacher.
        distributed: The machine.
        scratch: Where shards are made again.
        place: Where the features are published.
    """
    from selfdistill.pipelines.features.encode import features_job

    if place.is_dir():
        job = features_job(images, teacher, distributed)
        job.repair(place, scratch, distributed.num_workers)
