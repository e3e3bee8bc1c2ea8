"""Crop and pack real images: our shards beside Pillow and EDM's zip, in turn, in one run.

    python benchmarks/preprocess.py --images data/01_raw/imagenet/train
    python benchmarks/preprocess.py --memory

The rival is one process that opens, converts and crops each image by plain Pillow and puts it into
an uncompressed zip of uncompressed PNGs, the format of EDM's dataset tool. Both read the same class
folders from the page cache, write to the same disk, and have flushed it when the clock stops; ours
writes a CRC an image and a sha256 a shard beside. The files are linked as often as it takes to have
enough of them. What starting processes takes is measured on a set of a few images: a run without
it is what a long one comes to. A ratio is the median over the rounds of time against time.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from edm_zip import ZipImages, plain_crop, plain_decode, png, write_zip
from memory import measure
from page import about_run, head, table, write

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.crops import adm_center_crop, decode_rgb
from selfdistill.data.raw import RawImage, Reader
from selfdistill.data.readers import open_reader
from selfdistill.data.shard_writer import ShardWriter
from selfdistill.data.shards import Shards
from selfdistill.pipelines.preprocess.crop import crop_job

RESULTS = Path(__file__).parent / "results"
WORKERS = (0, 2)  # 0: this process
ZIP = "zip"
NUM_TO_PROFILE = 300


def link(images: Path, folder: Path, num: int) -> Reader:
    """Link the files of class folders into others, `num` in all, and open those."""
    files = sorted(file for file in images.resolve().glob("*/*") if file.is_file())
    if not files:
        raise ValueError(f"{images}: no class folders with images here; name a folder of some")
    for number in range(num):
        again, index = divmod(number, len(files))
        place = folder / files[index].parent.name / f"{again:04d}_{files[index].name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(files[index])
    return open_reader(folder, "class_folders")


def pack(scratch: Path, size: int, reader: Reader, *, shard_size: int, num_workers: int) -> Shards:
    """Crop into shards as the stage does."""
    config = PreprocessConfig(
        crop="adm", resolution=size, num_classes=len(reader.class_names), shard_size=shard_size,
        max_reject_share=0.0,
    )  # fmt: skip
    return crop_job(reader, config, num_workers).build(scratch)


def speed(reader: Reader, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time the zip and our shards in turn."""
    few = reader.part(0, min(2, len(reader)))
    times: dict[str, list[float]] = {ZIP: []}
    starts: dict[str, list[float]] = {}
    work: dict[str, list[float]] = {}
    equal, archive = True, scratch / "images.zip"
    for image in reader.iterate():  # into the page cache
        del image
    for _ in range(options.rounds):
        began = _cpu_seconds()
        times[ZIP].append(_timed(partial(write_zip, archive, reader.iterate(), options.size)))
        work.setdefault(ZIP, []).append(_cpu_seconds() - began)
        for num in WORKERS:
            name, place = f"workers_{num}", scratch / f"workers_{num}"
            run = partial(pack, place, options.size, num_workers=num)
            starts.setdefault(name, []).append(_timed(partial(run, few, shard_size=1)))
            shutil.rmtree(place)
            run = partial(run, reader, shard_size=options.shard_size)
            began = _cpu_seconds()
            times.setdefault(name, []).append(_timed(run))
            work.setdefault(name, []).append(_cpu_seconds() - began)
            equal = equal and _equal(archive, Shards.open(*place.glob("*/")))
            shutil.rmtree(place)
        archive.unlink()
    seconds = {name: statistics.median(each) for name, each in times.items()}
    steady = {ZIP: times[ZIP]} | {
        name: [a - b for a, b in zip(times[name], each, strict=True)]
        for name, each in starts.items()
        if name != "workers_0"
    }
    steady["workers_0"] = times["workers_0"]
    one = times["workers_0"]
    return {
        "seconds": seconds,
        "cpu_seconds": {name: statistics.median(each) for name, each in work.items()},
        "cpu_ratio_to_zip": {name: _ratio(work[ZIP], each) for name, each in work.items()},
        "seconds_to_start": {name: statistics.median(each) for name, each in starts.items()},
        "images_per_s": {name: len(reader) / each for name, each in seconds.items()},
        "ratio_to_zip": {name: _ratio(times[ZIP], each) for name, each in times.items()},
        "ratio_to_one_process": {name: _ratio(one, each) for name, each in times.items()},
        "steady_ratio_to_zip": {name: _ratio(times[ZIP], each) for name, each in steady.items()},
        "steady_ratio_to_one_process": {
            name: _ratio(steady["workers_0"], each) for name, each in steady.items()
        },
        "same_pixels": equal,
    }


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _cpu_seconds() -> float:
    """Return what this process and its ended children have computed, the kernel's part included."""
    return sum(os.times()[:4])


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _equal(archive: Path, shards: Shards) -> bool:
    """Say whether both hold the same images; a sample of them is looked at."""
    theirs, some = ZipImages(archive), np.arange(len(shards))[:: max(1, len(shards) // 100)]
    return len(theirs) == len(shards) and np.array_equal(theirs.read(some), shards.read(some))


def profile(reader: Reader, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time each part over some images in turn; milliseconds an image, of the zip and of ours."""
    raw = list(islice(reader.iterate(), NUM_TO_PROFILE))
    size = options.size
    pictures = [decode_rgb(image.data) for image in raw]
    crops = [adm_center_crop(picture, size) for picture in pictures]
    files = [bytes(png(crop)) for crop in crops]
    runs: dict[str, dict[str, Callable[[], object]]] = {
        ZIP: {
            "read": lambda: list(islice(reader.iterate(), len(raw))),
            "decode": lambda: _each(lambda image: plain_decode(image.data), raw),
            "crop": lambda: _each(lambda picture: plain_crop(picture, size), pictures),
            "encode": lambda: _each(png, crops),
            "write": lambda: _write(scratch / "profile", files),
        },
        "shards": {
            "read": lambda: list(islice(reader.iterate(), len(raw))),
            "decode": lambda: _each(lambda image: decode_rgb(image.data), raw),
            "crop": lambda: _each(lambda picture: adm_center_crop(picture, size), pictures),
            "write": lambda: _append(scratch / "profiled", raw, crops),
        },
    }
    times: dict[str, dict[str, list[float]]] = {
        side: {part: [] for part in parts} for side, parts in runs.items()
    }
    for _ in range(options.rounds):
        for side, parts in runs.items():
            for part, run in parts.items():
                times[side][part].append(1000 * _timed(run) / len(raw))
    return {
        side: {part: statistics.median(each) for part, each in parts.items()}
        for side, parts in times.items()
    }


def _each(function: Callable[[Any], object], values: Iterable[Any]) -> None:
    for value in values:
        function(value)


def _write(file: Path, contents: Iterable[bytes]) -> None:
    """Write a zip of what is there, and flush it."""
    with file.open("wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for number, content in enumerate(contents):
                archive.writestr(f"{number}.png", content)
        stream.flush()
        os.fsync(stream.fileno())


def _append(folder: Path, raw: Sequence[RawImage], crops: Sequence[np.ndarray]) -> None:
    """Write a shard of what is there."""
    with ShardWriter(folder, 0, crops[0].shape, "uint8") as writer:
        for image, crop in zip(raw, crops, strict=True):
            writer.append(image.key, image.label, crop, image.source)


def speed_page(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    found, parts = result["speed"], result["parts"]
    lines = [
        "# Preprocess: crop and pack",
        "",
        head(result["about"], result["command"]),
        f"{result['num_images']} links to {result['num_files']} images in class folders, to "
        f"{result['size']} x {result['size']}; shards of {result['shard_size']}. Zip: plain Pillow "
        "in one process, uncompressed PNGs in an uncompressed zip, EDM's format. All is read from "
        "the page cache and flushed to disk (fsync) within the time. Ratios are medians of paired "
        "times in one run; more is faster. Long run: without the start of the processes. "
        "CPU s: of all processes, whatever else the machine did. "
        f"Same pixels in both: {'yes' if found['same_pixels'] else 'NO'}. Goals: 1.6 x the zip in "
        "one process, 1.8 times more in two.",
        "",
        *table(
            "| images/s | s | s to start | CPU s | CPU, x zip | x zip | x one process | "
            "x zip, long run | x one process, long run",
            [_speed_cells(found, name) for name in found["seconds"]],
        ),
        "Milliseconds an image, each part alone; `write` has checksums and fsync.",
        "",
    ]
    names = list(dict.fromkeys(part for side in parts.values() for part in side))
    lines += table(
        " | ".join(["", *names, "sum"]),
        [
            [side, *(each.get(name, "") for name in names), sum(each.values())]
            for side, each in parts.items()
        ],
    )
    return "\n".join(lines)


def _speed_cells(found: dict[str, Any], name: str) -> list[Any]:
    titles = {"zip": "zip", "workers_0": "shards, this process"}
    keys = ("ratio_to_zip", "ratio_to_one_process")
    return [
        titles.get(name, f"shards, {name[-1]} worker processes"),
        found["images_per_s"][name], found["seconds"][name],
        found["seconds_to_start"].get(name, ""), found["cpu_seconds"][name],
        f"{found['cpu_ratio_to_zip'][name]:.2f}",
        *(f"{found[key][name]:.2f}" for key in keys),
        *(f"{found[f'steady_{key}'][name]:.2f}" for key in keys),
    ]  # fmt: skip


def memory_page(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    return "\n".join(
        [
            "# Preprocess and load: memory",
            "",
            head(result["about"], result["command"]),
            "Small JPEGs to 32 x 32 in two worker processes; then 100 batches of 256 of them. MB a "
            "process, as the kernel counts. Peak: the most a process held, mapped files included; "
            "own: without those. Loading: own memory after 10 batches and after 100. Goal: below "
            "1,000 and flat.",
            "",
            *table(
                "images | parent, peak | own | worker, peak | own | loading, peak | own after 10 | "
                "own after 100",
                [
                    [
                        f"{each['images']:,}",
                        *(
                            f"{each[process][kind]:.0f}"
                            for process in ("parent", "worker")
                            for kind in ("peak", "anonymous")
                        ),
                        *(f"{each['loading'][kind]:.0f}" for kind in ("peak", "early", "late")),
                    ]
                    for each in result["memory"]
                ],
            ),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="class folders")
    parser.add_argument("--num", type=int, default=2048, help="images; files are linked again")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--shard-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="of synthetic sets, instead of speed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to write to; temporary")
    parser.add_argument("--name", help="of the results files; preprocess, or preprocess_memory")
    options = parser.parse_args(argv)
    if not options.memory and options.images is None:
        parser.error("give --images, a folder of class folders, or --memory")
    result: dict[str, Any] = {"about": about_run()}
    with tempfile.TemporaryDirectory(dir=options.scratch) as place:
        scratch = Path(place)
        if options.memory:
            sizes = " ".join(map(str, options.sizes))
            result["command"] = f"benchmarks/preprocess.py --memory --sizes {sizes}"
            result["memory"] = [measure(num, scratch) for num in options.sizes]
            page = memory_page(result)
        else:
            reader = link(options.images, scratch / "linked", options.num)
            result |= {
                "command": f"benchmarks/preprocess.py --num {options.num} --size {options.size} "
                f"--shard-size {options.shard_size} --rounds {options.rounds}",
                "num_images": len(reader),
                "num_files": sum(file.is_file() for file in options.images.glob("*/*")),
                "size": options.size,
                "shard_size": options.shard_size,
                "speed": speed(reader, scratch, options),
                "parts": profile(reader, scratch, options),
            }
            page = speed_page(result)
    name = options.name or ("preprocess_memory" if options.memory else "preprocess")
    write(RESULTS, name, result, page)


if __name__ == "__main__":
    sys.exit(main())
