"""What the loader gives a second beside EDM's zip, and what a row needs of it.

    python benchmarks/loader.py --images data/01_raw/imagenet/train

Images are cropped as the stage does, linked as often as it takes to have enough of them, and packed
into our shards and into an uncompressed zip of uncompressed PNGs, EDM's format; random features of
the teacher's shape stand for its own, since time does not depend on values. Everything takes turns
batch by batch or part by part, and a ratio is the median of time against time. What a row needs is
computed: images a second of a GPU that spends `UTILISATION` of its peak on the FLOP of the row.
"""

import argparse
import ctypes
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edm_zip import ZipImages, write_zip
from page import about_run, head, table, write
from preprocess import link, pack
from train_step import PARAMETERS, PEAKS, count_flops, read_row

from selfdistill.data.loader import Loader
from selfdistill.data.shard_writer import ShardWriter, finalize
from selfdistill.data.shards import Shards
from selfdistill.data.tokens import packed_dim

RESULTS = Path(__file__).parent / "results"
ROWS = ("dsd_s", "dsd_m", "dsd_b")
UTILISATION, NUM_GPUS = 0.4, 8
NUM_IMAGES = 1_281_167  # of ImageNet
GPUS = {"A100, A800": PEAKS["A100"], "H100, H200": PEAKS["H200"]}
SHARD_SIZE = 256
# Out of the loader, in memory, by threads. Beside a GPU the batches go through pinned memory, which
# PyTorch keeps; on a CPU each is new memory, and most of the time the kernel hands out pages.
WAYS = (
    ("read", "kept", 1), ("read", "kept", 2), ("read", "fresh", 1), ("load", "fresh", 1)
)  # fmt: skip
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def write_features(folder: Path, images: Shards, shape: Sequence[int], dtype: str) -> Shards:
    """Write random features of both orientations beside images."""
    rng = np.random.default_rng(0)
    record = (2, *shape)
    some = rng.integers(0, 60, (8, *record), dtype=np.uint8)  # finite as float16 and as scale
    some = (some / 64).astype(dtype) if dtype == "float16" else some.astype(dtype)
    starts = np.cumsum([0, *images.shard_sizes])
    for shard, num in enumerate(images.shard_sizes):
        with ShardWriter(folder, shard, record, dtype) as writer:
            for number in range(starts[shard], starts[shard] + num):
                writer.append(f"{number}", 0, some[number % len(some)])
    about = {"images": images.fingerprint}
    num_shards = len(images.shard_sizes)
    return finalize(folder, num_shards=num_shards, shape=record, dtype=dtype, about=about)


def in_turn(
    runs: dict[str, Callable[[], object]],
    rounds: int,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Time every run in turn, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if before is not None:
                before(name)
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def random_reads(archive: Path, shards: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Read the same random images from the zip and from shards, from memory and from disk."""
    opened: dict[str, Callable[[], Any]] = {
        "zip": partial(ZipImages, archive),
        "shards": partial(Shards.open, shards),
        "shards, strict": partial(Shards.open, shards, strict=True),
    }
    sources = {name: function() for name, function in opened.items()}
    num, rng = len(sources["shards"]), np.random.default_rng(0)
    wanted = np.empty(0, int)

    def draw(name: str) -> None:
        nonlocal wanted
        if name == "zip":  # the first of a round
            wanted = rng.integers(0, num, options.batch)

    for each in sources.values():
        each.read(np.arange(num))  # into the page cache
    same = np.array_equal(*(sources[name].read(np.arange(0, num, 8)) for name in ("zip", "shards")))
    runs = {name: lambda name=name: sources[name].read(wanted) for name in opened}
    warm = in_turn(runs, options.rounds, draw)

    def forget(name: str) -> None:
        draw(name)
        sources.clear()  # the kernel keeps what somebody has mapped
        for file in (archive, *shards.glob("*.arrow")):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        sources[name] = opened[name]()
        if name != "zip":
            sources[name].keys_of(np.arange(0, num, SHARD_SIZE))  # opens every shard

    del each
    cold = in_turn(runs, min(options.rounds, 5), forget)
    return {"same_pixels": same} | {
        temperature: {
            name: {
                "images_per_s": options.batch / statistics.median(each),
                "ratio_to_zip": _ratio(times["zip"], each),
            }
            for name, each in times.items()
        }
        for temperature, times in (("warm", warm), ("cold", cold))
    }


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def loading(
    images: Shards, features: dict[str, Shards | None], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time the loader in turn: what its thread does for a GPU, and a whole batch on the CPU."""
    batches = [
        np.arange(start, start + options.batch)
        for start in range(0, len(images) - options.batch + 1, options.batch)
    ]
    runs: dict[str, Callable[[], object]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    width = _width(images)
    for name, stored in features.items():
        size = width + (0 if stored is None else _width(stored) // 2)  # of one orientation
        for what, memory, threads in WAYS:
            loader = Loader(
                images, stored, seed=0, flip=True, device=torch.device("cpu"), num_threads=threads
            )
            key = f"{name} {what} {memory} {threads}"
            kinds[key] = {
                "features": name, "what": what, "memory": memory, "threads": threads, "bytes": size
            }  # fmt: skip
            function = loader._read if what == "read" else loader.load
            runs[key] = partial(_each, function, batches)
    times = in_turn(runs, options.rounds, lambda key: keep_memory(kinds[key]["memory"] == "kept"))
    keep_memory(False)
    num = len(batches) * options.batch
    found = []
    for key, kind in kinds.items():
        rate = num / statistics.median(times[key])
        found.append(kind | {"images_per_s": rate, "per_core": rate / kind["threads"]})
    return found


def keep_memory(kept: bool) -> None:
    """Let glibc keep what is freed for the next who asks, as PyTorch keeps pinned memory."""
    libc = ctypes.CDLL(None)
    for option, usual in ((M_MMAP_THRESHOLD, 128 << 10), (M_TRIM_THRESHOLD, 128 << 10)):
        libc.mallopt(option, 2**31 - 1 if kept else usual)


def _width(shards: Shards) -> int:
    return int(np.prod(shards.shape)) * shards.dtype.itemsize


def _each(function: Callable[[np.ndarray], object], batches: Sequence[np.ndarray]) -> None:
    for batch in batches:
        function(batch)


def needs(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute what a row needs; beside it, how much more one thread a GPU was seen to give."""
    row = read_row(name, PARAMETERS)
    flops, config = count_flops(row), row.network.root
    image = 3 * config.resolution**2
    tokens = {
        "float16": 2 * config.num_tokens * config.teacher_dim,
        "int8": config.num_tokens * packed_dim(config.teacher_dim),
        "online": 0,
    }
    rate = {each["features"]: each["per_core"] for each in found if _is_for_gpu(each)}
    gpus = []
    for gpu, peak in GPUS.items():
        for kind, width in tokens.items():
            work = flops["step"] + (flops["teacher"] if kind == "online" else 0)
            per_gpu = UTILISATION * peak / work
            gpus.append(
                {
                    "gpu": gpu, "features": kind, "flops": work, "images_per_s": per_gpu,
                    "images_per_s_of_all": NUM_GPUS * per_gpu,
                    "bytes_per_s_of_all": NUM_GPUS * per_gpu * (image + width),
                    "headroom": rate[kind] / per_gpu,
                }
            )  # fmt: skip
    sizes = {kind: NUM_IMAGES * (image + 2 * width) for kind, width in tokens.items()}
    return {"gpus": gpus, "bytes_of_dataset": sizes}


def _is_for_gpu(found: dict[str, Any]) -> bool:
    return (found["what"], found["memory"], found["threads"]) == WAYS[0]


def to_page(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    reads = result["reads"]
    lines = [
        "# Loader",
        "",
        head(result["about"], result["command"]),
        f"{result['num_images']} real images, cropped to {result['size']} x {result['size']}, "
        f"batches of {result['batch']}; each thread on a core of its own.",
        "",
        "## Measured: random reads",
        "",
        "Zip: uncompressed PNGs in an uncompressed zip, EDM's format, by Pillow. Warm: from the "
        "page cache; cold: after the kernel was told to drop it. Strict: each record held against "
        f"its checksum. Same pixels in both: {'yes' if reads['same_pixels'] else 'NO'}. Goal: 20 x "
        "zip, warm.",
        "",
        *table(
            "| images/s, warm | x zip | images/s, cold | x zip",
            [
                [
                    name,
                    *(
                        f"{reads[kind][name][value]:.{digits}f}"
                        for kind in ("warm", "cold")
                        for value, digits in (("images_per_s", 0), ("ratio_to_zip", 1))
                    ),
                ]
                for name in reads["warm"]
            ],
        ),
        "## Measured: batches",
        "",
        "Bytes out: uint8 pixels, stored features, labels, flips, as they go to a GPU, which flips "
        "and converts. Float out: the whole of it on the CPU. Memory kept: as PyTorch keeps pinned "
        "memory beside a GPU; fresh: as on a CPU. Page cache warm. Features online: none are read. "
        "Goal: 5,000 images/s a core, bytes out.",
        "",
        *table(
            "features | out | memory | threads | images/s | images/s a core | MB/s a core",
            [
                [
                    each["features"],
                    {"read": "bytes", "load": "float"}[each["what"]],
                    each["memory"],
                    each["threads"],
                    f"{each['images_per_s']:.0f}",
                    f"{each['per_core']:.0f}",
                    f"{each['per_core'] * each['bytes'] / 1e6:.0f}",
                ]
                for each in result["loading"]
            ],
        ),
        "## Computed: what rows need",
        "",
        f"GPUs at {100 * UTILISATION:.0f} % of their dense bfloat16 peak (312 and 989 TFLOP/s), "
        "forward and backward, with the teacher's pass where features are made online; the "
        "optimizer, which only slows the GPU, left out. MB/s: what leaves the page cache, or the "
        f"disk where that does not hold the dataset. Headroom: measured above on {_cpu(result)}, "
        "one loader thread for each GPU and memory kept, over the need; a GPU machine's memory and "
        "bus are not in it.",
        "",
        *table(
            f"row | GPU | features | TFLOP an image | images/s a GPU | {NUM_GPUS} GPUs | MB/s, "
            f"{NUM_GPUS} GPUs | headroom",
            [
                [
                    name, each["gpu"], each["features"], f"{each['flops'] / 1e12:.3f}",
                    f"{each['images_per_s']:.0f}", f"{each['images_per_s_of_all']:.0f}",
                    f"{each['bytes_per_s_of_all'] / 1e6:.0f}", f"{each['headroom']:.1f}",
                ]
                for name, row in result["rows"].items()
                for each in row["gpus"]
            ],
        ),
        f"The dataset, {NUM_IMAGES:,} images, features of both orientations, on disk, and in the "
        "page cache if no read is to reach the disk:",
        "",
        *table(
            "images and features | GB",
            [
                [kind, f"{size / 1e9:.0f}"]
                for kind, size in next(iter(result["rows"].values()))["bytes_of_dataset"].items()
            ],
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def _cpu(result: dict[str, Any]) -> str:
    return str(result["about"]["cpu"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compute, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--num", type=int, default=2048, help="images; files are linked again")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--scratch", type=Path, help="folder on the disk to write to; temporary")
    parser.add_argument("--name", default="loader", help="of the results files")
    options = parser.parse_args(argv)
    config = read_row(options.rows[0], PARAMETERS).network.root
    size, num_tokens, dim = config.resolution, config.num_tokens, config.teacher_dim
    machine = about_run()
    with tempfile.TemporaryDirectory(dir=options.scratch) as place:
        scratch = Path(place)
        reader = link(options.images, scratch / "linked", options.num)
        images = pack(scratch / "images", size, reader, shard_size=SHARD_SIZE, num_workers=2)
        archive = scratch / "images.zip"
        write_zip(archive, reader.iterate(), size)
        features = {
            "online": None,
            "float16": write_features(scratch / "float16", images, (num_tokens, dim), "float16"),
            "int8": write_features(scratch / "int8", images, (num_tokens, packed_dim(dim)), "int8"),
        }
        shards = shutil.copytree(images.path, scratch / "shards")  # which the loader does not map
        os.sync()  # what is not on disk yet cannot be dropped from the page cache
        reads = random_reads(archive, shards, options)
        found = loading(images, features, options)
        result = {
            "about": machine,
            "command": f"benchmarks/loader.py --num {options.num} --batch {options.batch} "
            f"--rounds {options.rounds}",
            "num_images": len(images),
            "size": size,
            "batch": options.batch,
            "reads": reads,
            "loading": found,
            "rows": {name: needs(name, found) for name in options.rows},
        }
    write(RESULTS, options.name, result, to_page(result))


if __name__ == "__main__":
    sys.exit(main())
