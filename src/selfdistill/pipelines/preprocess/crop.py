"""Raw images -> shards of cropped images: resumable, in any number of processes.

Shard k is made of raw images [k S, (k + 1) S), S the shard size, by nobody else's help: neither
the number of processes and hosts nor the runs it took change a byte. What cannot be decoded is
recorded as a reject, and its shard is that much shorter.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL

from selfdistill.data.class_order import check_imagenet_order
from selfdistill.data.config import PreprocessConfig
from selfdistill.data.crops import CROPS, decode_rgb
from selfdistill.data.raw import Reader
from selfdistill.data.shard_job import ShardJob
from selfdistill.data.shard_writer import ShardWriter
from selfdistill.data.shards import Shards
from selfdistill.files import fingerprint
from selfdistill.pipelines.preprocess.pool import work_off
from selfdistill.progress import progress
from selfdistill.sources import Code

logger = logging.getLogger(__name__)

_DECODER = f"Pillow {PIL.__version__.partition('.')[0]}"  # its pixels may change with the major
_REJECTS_NAMED = 5


def crop_job(raw: Reader, config: PreprocessConfig, num_workers: int) -> ShardJob:
    """Return the job of cropping raw images.

    Args:
        raw: The raw images.
        config: Crop, resolution, shard size and what is expected of the raw images.
        num_workers: Processes; 0 works in this one.

    Raises:
        ValueError: If number or order of the classes are not the expected ones.
    """
    _check_classes(raw, config)
    side = config.resolution
    return ShardJob(
        name=fingerprint(
            raw.fingerprint,
            config.crop,
            side,
            config.shard_size,
            Code([decode_rgb.__module__]).fingerprint(),
            _DECODER,
        ),
        what=f"images of {side} x {side}",
        sizes=[
            min(config.shard_size, len(raw) - first)
            for first in range(0, len(raw), config.shard_size)
        ],
        shape=(side, side, 3),
        dtype="uint8",
        make=partial(_make_shards, raw=raw, config=config, num_workers=num_workers),
        class_names=raw.class_names,
        about={
            "crop": config.crop,
            "resolution": side,
            "raw_fingerprint": raw.fingerprint,
            "decoder": _DECODER,
        },
    )


def check_rejects(shards: Shards, max_share: float) -> None:
    """Name the rejects in the log, or in an error if they are too many.

    Args:
        shards: Cropped images.
        max_share: Largest share of rejects that is tolerated.

    Raises:
        ValueError: If there are more.
    """
    if not shards.header["num_rejects"]:
        return
    rejects = shards.manifest[shards.manifest["reason"].notna()]
    num = len(rejects) + len(shards)
    named = rejects[["source", "reason"]].head(_REJECTS_NAMED).itertuples(index=False, name=None)
    listed = "".join(f"\n  {source}: {reason}" for source, reason in named)
    listed += "\n  ..." if len(rejects) > _REJECTS_NAMED else ""
    if (share := len(rejects) / num) > max_share:
        raise ValueError(
            f"{len(rejects)} of {num} images were rejected, a share of {share:.3g}, more than "
            f"preprocess.max_reject_share = {max_share:.3g}: mend them, or raise the limit, which "
            f"makes no shard anew{listed}"
        )
    logger.warning("%d of %d images rejected:%s", len(rejects), num, listed)


class _Share(NamedTuple):
    """A shard to make, and the raw images it is made of."""

    shard: int
    raw: Reader


def _make_shards(
    directory: Path,
    numbers: Sequence[int],
    *,
    raw: Reader,
    config: PreprocessConfig,
    num_workers: int,
) -> None:
    """Make some shards and show how far it is.

    Raises:
        OSError: If a raw image cannot be read.
    """
    size, side = config.shard_size, config.resolution
    sizes = [min((shard + 1) * size, len(raw)) - shard * size for shard in numbers]
    logger.info(
        "Cropping %d images to %d x %d, from shard %d on, in %s",
        sum(sizes),
        side,
        side,
        numbers[0],
        f"{num_workers} processes" if num_workers else "this process",
    )
    shares = (
        _Share(shard, raw.part(shard * size, shard * size + length))
        for shard, length in zip(numbers, sizes, strict=True)
    )
    with progress("crop", sum(sizes)) as bar:
        work = partial(_make_shard, config=config, directory=directory)
        work_off(shares, work, num_workers, bar.update)


def _make_shard(
    share: _Share, count: Callable[[], object], *, config: PreprocessConfig, directory: Path
) -> None:
    """Crop a share image by image; call `count` after each."""
    crop, size = CROPS[config.crop], config.resolution
    with ShardWriter(directory, share.shard, (size, size, 3), "uint8") as writer:
        for image in share.raw.iterate():
            try:
                pixels = crop(decode_rgb(image.data), size)
            except ValueError as error:
                writer.reject(image.key, str(error), image.label, image.source)
            else:
                writer.append(image.key, image.label, pixels, image.source)
            count()


def _check_classes(raw: Reader, config: PreprocessConfig) -> None:
    if config.class_order == "imagenet":
        check_imagenet_order(raw.class_names)
    if len(raw.class_names) != config.num_classes:
        raise ValueError(
            f"the raw images have {len(raw.class_names)} classes, preprocess.num_classes is "
            f"{config.num_classes}: correct the parameter, or the raw images"
        )
