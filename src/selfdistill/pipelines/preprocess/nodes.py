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
    raw: Reader, preprocess: PreprocessConfig, distributed: DistributedConfig, scratch: Path
) -> Shards:
    """Crop every raw image to a square and pack them, going on where an earlier run stopped.

    Args:
        raw: The raw images.
        preprocess: Crop, resolution, shard size and what is expected of the raw images.
        distributed: How many processes share the work.
        scratch: Where the unfinished shards are kept.

    Returns:
        uint8 images, (H, W, 3) each, in the order of the raw images.
    """
    from selfdistill.pipelines.preprocess.crop import build_shards

    return build_shards(raw, preprocess, distributed.num_workers, scratch)
