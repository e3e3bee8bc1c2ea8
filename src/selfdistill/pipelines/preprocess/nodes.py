"""Nodes of the preprocess stage."""

from collections.abc import Iterable
from pathlib import Path

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.raw import Reader
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig


def write_digits() -> Iterable[tuple[str, bytes]]:
    """Draw the UCI handwritten digits as image files of many sizes and modes.

    Returns:
        Path below the dataset's folder and content of each file.
    """
    from selfdistill.data.digits import draw_digits

    return draw_digits()


def crop_images(
    raw: Reader,
    preprocess: PreprocessConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path | None = None,
) -> Shards:
    """Crop every raw image to a square and pack them, going on where an earlier run stopped.

    Args:
        raw: The raw images.
        preprocess: Crop, resolution, shard size and what is expected of the raw images.
        distributed: How many processes share the work.
        scratch: Where the unfinished shards are kept.
        place: Where the images are published; if they are these, nothing is made.

    Returns:
        uint8 images, (H, W, 3) each, in the order of the raw images.
    """
    from selfdistill.pipelines.preprocess.crop import check_rejects, crop_job

    shards = crop_job(raw, preprocess, distributed.num_workers).build(scratch, place)
    check_rejects(shards, preprocess.max_reject_share)
    return shards


def crop_images_share(
    raw: Reader,
    preprocess: PreprocessConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path | None = None,
) -> None:
    """Make this host's share of the shards that `crop_images` makes.

    Args:
        raw: The raw images, the same on all hosts.
        preprocess: Crop, resolution, shard size and what is expected of the raw images.
        distributed: How many processes share the work, and which of the hosts this is.
        scratch: Where the unfinished shards are kept, seen by all hosts.
        place: Where the images are published; if they are these, nothing is made.
    """
    from selfdistill.pipelines.preprocess.crop import crop_job

    job = crop_job(raw, preprocess, distributed.num_workers)
    job.build_share(scratch, distributed.host, distributed.num_hosts, place)


def repair_images(
    raw: Reader,
    preprocess: PreprocessConfig,
    distributed: DistributedConfig,
    scratch: Path,
    place: Path,
) -> Shards:
    """Make the damaged shards of published images anew, and only those.

    Args:
        raw: The raw images that they were made of.
        preprocess: The parameters that they were made with.
        distributed: How many processes share the work.
        scratch: Where shards are made again.
        place: Where the images are published.

    Returns:
        The whole images, in their place.
    """
    from selfdistill.pipelines.preprocess.crop import crop_job

    job = crop_job(raw, preprocess, distributed.num_workers)
    return job.repair(place, scratch, distributed.num_workers)
