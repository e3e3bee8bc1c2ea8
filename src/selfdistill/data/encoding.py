"""Image shards through a frozen network, over all ranks: shard k of the result holds the rows of k.

What an image becomes depends on the image alone, as far as the network's arithmetic does not depend
on the batch; each record holds it as it is and, if wanted, mirrored.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfdistill.data.loader import read_ahead
from selfdistill.data.shard_job import ShardJob, share_of
from selfdistill.data.shard_writer import ShardWriter
from selfdistill.data.shards import Shards
from selfdistill.data.tokens import scales_of
from selfdistill.distributed import World, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import fingerprint
from selfdistill.progress import progress

logger = logging.getLogger(__name__)

Run = Callable[[Path, World], None]
Encode = Callable[[Tensor], Tensor]


class Encoding(NamedTuple):
    """What is made of each image.

    Attributes:
        shape: Shape of what the network makes of an image.
        dtype: NumPy name of its element type.
        mirrored: Whether the same is made of the mirrored image, and stands behind.
        batch_size: Images a forward pass.
    """

    shape: Sequence[int]
    dtype: str
    mirrored: bool
    batch_size: int

    @property
    def record_shape(self) -> tuple[int, ...]:
        """Shape of an image's record, (1 or 2, *shape)."""
        return (2 if self.mirrored else 1, *self.shape)


def encoding_job(
    run: Run,
    what: str,
    images: Shards,
    encoding: Encoding,
    spec: dict[str, Any],
    about: dict[str, Any],
    distributed: DistributedConfig,
) -> ShardJob:
    """Return the job of encoding images.

    Args:
        run: What a rank does: it calls `encode_share`.
        what: What is made, for messages.
        images: uint8 images, (H, W, 3) each.
        encoding: What is made of each.
        spec: What `run` needs to know beside, as JSON values.
        about: All that determines the result beside `encoding` and the images, as JSON values.
        distributed: The machine.
    """
    layout = encoding._replace(shape=list(encoding.shape), batch_size=0)._asdict()
    origin = {"images": images.fingerprint, **about, "torch": torch.__version__}

    def make(directory: Path, numbers: Sequence[int]) -> None:
        num_images = sum(images.shard_sizes[shard] for shard in numbers)
        logger.info("Encoding %d images in %d shards", num_images, len(numbers))
        paths = {"images": str(images.path), "strict": distributed.strict_reads}
        share = {"encoding": encoding._asdict(), "shards": list(numbers)}
        run_job(run, directory, {**paths, **share, **spec}, distributed)

    return ShardJob(
        name=fingerprint(layout, origin),
        what=f"records of {what}",
        sizes=images.shard_sizes,
        shape=encoding.record_shape,
        dtype=encoding.dtype,
        make=make,
        class_names=images.class_names,
        about=origin,
    )


def encode_share(spec: Path, world: World, start: Callable[[dict[str, Any], int], Encode]) -> None:
    """Write this rank's share of the missing shards, reading and writing beside the GPU.

    Args:
        spec: The job's JSON file.
        world: This rank.
        start: Takes the content of `spec` and the side of the images, and gives the function that
            encodes uint8-valued images (n, 3, H, W) on the rank's device.
    """
    values = json.loads(spec.read_text(encoding="utf-8"))
    images = Shards.open(Path(values["images"]), strict=values["strict"])
    encoding = Encoding(**values["encoding"])
    encode = start(values, images.shape[0])
    starts = np.cumsum([0, *images.shard_sizes])
    directory = Path(values["directory"])
    mine = share_of(values["shards"], directory, world)
    num_images = sum(images.shard_sizes[shard] for shard in mine)
    what = "encode" if world.size == 1 else f"encode, rank 0 of {world.size}"
    with progress(what, num_images, disable=not world.is_main) as bar:
        for shard in mine:
            rows = np.arange(starts[shard], starts[shard + 1])
            encoded = _one_behind(_encoded(images, rows, encode, encoding, world.device))
            with ShardWriter(directory, shard, encoding.record_shape, encoding.dtype) as writer:
                for batch in encoded:
                    keys = images.keys_of(batch.indices)
                    labels = images.labels[batch.indices].tolist()
                    records = batch.fetch()
                    if not batch.is_finite.all():
                        first = keys[int(batch.is_finite.int().argmin())]
                        raise ValueError(
                            f"{images.path}: what was made of image {first} is not finite, or too "
                            f"large for {encoding.dtype}: check the network's weights, or keep a "
                            "wider type"
                        )
                    for key, label, record in zip(keys, labels, records, strict=True):
                        writer.append(key, label, record)
                    bar.update(len(keys))


class _Encoded(NamedTuple):
    """What was made of some images, on its way from the GPU."""

    indices: np.ndarray
    records: Tensor
    is_finite: Tensor  # (n,), bool
    arrival: "torch.cuda.Event | None"  # None: it is there

    def fetch(self) -> np.ndarray:
        """Wait for it."""
        if self.arrival is not None:
            self.arrival.synchronize()
        values: np.ndarray = self.records.numpy()
        return values


def _encoded(
    images: Shards, rows: np.ndarray, encode: Encode, encoding: Encoding, device: torch.device
) -> Iterator[_Encoded]:
    """Encode images batch by batch, without waiting for the GPU."""
    size = encoding.batch_size
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]

    def read(indices: np.ndarray) -> tuple[np.ndarray, Tensor]:
        pixels = torch.from_numpy(images.read(indices))
        return indices, pixels.pin_memory() if device.type == "cuda" else pixels

    for indices, pixels in read_ahead(read, batches, device):
        x = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
        ways = (x, x.flip(-1)) if encoding.mirrored else (x,)
        records = torch.stack([encode(way) for way in ways], dim=1)  # (n, 1 or 2, *shape)
        is_finite = _is_finite(records)
        if device.type == "cpu":
            yield _Encoded(indices, records, is_finite, None)
            continue
        records, is_finite = (_fetched(tensor) for tensor in (records, is_finite))
        arrival = torch.cuda.current_stream(device).record_event()
        yield _Encoded(indices, records, is_finite, arrival)


def _is_finite(records: Tensor) -> Tensor:
    """Say of each record whether all of it is finite, (n,)."""
    values = scales_of(records) if records.dtype == torch.int8 else records
    return values.isfinite().flatten(1).all(1)


def _fetched(tensor: Tensor) -> Tensor:
    """Start to copy a tensor from the GPU."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _one_behind(items: Iterator[_Encoded]) -> Iterator[_Encoded]:
    """Yield each item when the next one has been started."""
    last = None
    for item in items:
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last
