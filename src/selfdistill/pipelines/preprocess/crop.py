"""Raw images -> shards of cropped images: resumable, in any number of processes.

Shard k is made of raw images [k S, (k + 1) S), S the shard size, by nobody else's help: neither
the number of processes nor the runs it took change a byte. What cannot be decoded is recorded as a
reject, and its shard is that much shorter.
"""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL
from tqdm import tqdm

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.crops import CROPS, decode_rgb
from selfdistill.data.raw import Reader
from selfdistill.data.shards import Shards, ShardWriter, finalize, missing_shards
from selfdistill.files import check_space, fingerprint, job, source_fingerprint
from selfdistill.pipelines.preprocess.pool import work_off

logger = logging.getLogger(__name__)

_DECODER = f"Pillow {PIL.__version__.partition('.')[0]}"  # its pixels may change with the major
_BYTES_PER_RECORD = 256  # of a shard, beside the pixels: key, label, padding; generous
_REJECTS_NAMED = 5


def build_shards(raw: Reader, config: PreprocessConfig, num_workers: int, scratch: Path) -> Shards:
    """Make the shards that are missing in `scratch`, then their manifest.

    Args:
        raw: The raw images.
        config: Crop, resolution, shard size and what is expected of the raw images.
        num_workers: Processes; 0 works in this one.
        scratch: Parent of the directory, named by a fingerprint of whatever determines the
            shards, in which they are made.

    Returns:
        The finished set, still in scratch.

    Raises:
        ValueError: If the number of classes is not the expected one, another run is at work in
            `scratch`, the disk is too small, or too many images were rejected; the shards stay.
        OSError: If a raw image cannot be read.
    """
    _check_classes(raw, config.num_classes)
    origin = fingerprint(
        raw.fingerprint,
        config.crop,
        config.resolution,
        config.shard_size,
        source_fingerprint("data/crops.py"),
        _DECODER,
    )
    with job(scratch, origin) as directory:
        _make_missing(raw, config, num_workers, directory)
        shards = finalize(
            directory,
            num_shards=_num_shards(raw, config),
            shape=(config.resolution, config.resolution, 3),
            dtype="uint8",
            class_names=raw.class_names,
            sources=raw.sources(),
            about={
                "crop": config.crop,
                "resolution": config.resolution,
                "raw_fingerprint": raw.fingerprint,
                "pillow_version": PIL.__version__,
            },
        )
    _check_rejects(shards, config.max_reject_share)
    return shards


class _Share(NamedTuple):
    """A shard to make, and the raw images it is made of."""

    shard: int
    raw: Reader


def _num_shards(raw: Reader, config: PreprocessConfig) -> int:
    return -(-len(raw) // config.shard_size)


def _make_missing(raw: Reader, config: PreprocessConfig, num_workers: int, directory: Path) -> None:
    """Make the missing shards and show how far it is."""
    for leftover in directory.glob(".*.tmp"):  # of a killed run
        leftover.unlink()
    size = config.shard_size
    shares = [
        _Share(shard, raw.part(shard * size, min((shard + 1) * size, len(raw))))
        for shard in missing_shards(directory, _num_shards(raw, config))
    ]
    if not shares:
        return
    num_images = sum(len(share.raw) for share in shares)
    side = config.resolution
    needed = num_images * (3 * side**2 + _BYTES_PER_RECORD)
    check_space(directory, needed, f"{num_images:,} images of {side} x {side}")
    logger.info(
        "Cropping %d images to %d x %d, from shard %d on, in %s",
        num_images,
        config.resolution,
        config.resolution,
        shares[0].shard,
        f"{num_workers} processes" if num_workers else "this process",
    )
    with tqdm(
        desc="crop",
        total=len(raw),
        initial=len(raw) - num_images,
        unit="img",
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ) as bar:
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
                writer.reject(image.key, str(error))
            else:
                writer.append(image.key, image.label, pixels)
            count()


def _check_classes(raw: Reader, num_classes: int) -> None:
    if len(raw.class_names) != num_classes:
        raise ValueError(
            f"the raw images have {len(raw.class_names)} classes, preprocess.num_classes is "
            f"{num_classes}: correct the parameter, or the raw images"
        )


def _check_rejects(shards: Shards, max_share: float) -> None:
    """Name the rejects in the log, or in an error if they are too many."""
    rejects = shards.manifest[shards.manifest["reason"].notna()]
    if rejects.empty:
        return
    share = len(rejects) / len(shards.manifest)
    named = rejects[["source", "reason"]].head(_REJECTS_NAMED).itertuples(index=False, name=None)
    listed = "".join(f"\n  {source}: {reason}" for source, reason in named)
    listed += "\n  ..." if len(rejects) > _REJECTS_NAMED else ""
    if share > max_share:
        raise ValueError(
            f"{len(rejects)} of {len(shards.manifest)} images were rejected, a share of "
            f"{share:.3g}, more than preprocess.max_reject_share = {max_share:.3g}: mend them, or "
            f"raise the limit, which makes no shard anew{listed}"
        )
    logger.warning("%d of %d images rejected:%s", len(rejects), len(shards.manifest), listed)
