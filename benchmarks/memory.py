"""How much memory preprocessing and loading take, each in a fresh process that is looked at.

`preprocess.py --memory` starts this script; what a process takes is what the kernel says of it and
of its children. Anonymous memory is a process's own; the rest is files that it has mapped, which
the kernel takes away when somebody needs the room.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.readers import open_reader
from selfdistill.data.shards import Shards
from selfdistill.pipelines.preprocess.crop import crop_job

NUM_FILES, CLASS_SIZE, SIDE = 256, 1_000, 64
RESOLUTION, NUM_SHARDS, NUM_WORKERS = 32, 8, 2
BATCH, NUM_BATCHES, BATCHES_TO_WARM_UP = 256, 100, 10
FIELDS = {"VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "mapped"}
POLL_SECONDS = 0.02


def measure(num_images: int, scratch: Path) -> dict[str, Any]:
    """Return the memory in MB that it takes to crop so many images, and to load of them."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folder = Path(place)
        make_images(folder / "raw", num_images)
        cropping, path = _watch("crop", folder)
        loading, said = _watch("load", Path(path))
    parent, *workers = sorted(cropping, key=lambda process: process["started"])
    tracked = [process for process in workers if process["peak"] > parent["peak"] / 4]
    return {
        "images": num_images,
        "parent": parent,
        "worker": max(tracked, key=lambda process: process["peak"]),
        "processes": len(cropping),
        "loading": loading[0] | json.loads(said),
    }


def make_images(folder: Path, num: int) -> None:
    """Write a few small JPEG files and link them under as many names as are wanted."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(num):
        file = folder / f"class_{number // CLASS_SIZE:04d}" / f"{number:08d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < NUM_FILES:
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            encoded = io.BytesIO()
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(encoded, "jpeg")
            file.write_bytes(encoded.getvalue())
            files.append(file)
        else:
            os.link(files[number % NUM_FILES], file)


def _watch(work: str, path: Path) -> tuple[list[dict[str, Any]], str]:
    """Run this script and return the most that each of its processes took, and what it said."""
    seen: dict[int, dict[str, Any]] = {}
    command = [sys.executable, __file__, work, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for pid in _family(process.pid):
                now = memory_of(pid)
                before = seen.setdefault(pid, {"started": len(seen)})
                seen[pid] = before | {k: max(v, before.get(k, 0.0)) for k, v in now.items()}
            time.sleep(POLL_SECONDS)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise ChildProcessError(f"{' '.join(command)} ended with {process.returncode}")
    return [process for process in seen.values() if len(process) > 1], said.strip()


def _family(pid: int) -> list[int]:
    """Return a process, its children and theirs."""
    try:
        lists = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just ended
        return []
    children = [int(child) for each in lists for child in each.split()]
    return [pid, *(member for child in children for member in _family(child))]


def memory_of(pid: int | str) -> dict[str, float]:
    """Return MB: the most a process has ever held, and what it holds; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        name: int(values[field].split()[0]) * 1024 / 1e6
        for field, name in FIELDS.items()
        if field in values
    }


def crop(folder: Path) -> str:
    """Crop the images below a folder; return where they are."""
    reader = open_reader(folder / "raw", "class_folders")
    config = PreprocessConfig(
        crop="adm", resolution=RESOLUTION, num_classes=len(reader.class_names),
        shard_size=-(-len(reader) // NUM_SHARDS), max_reject_share=0.0,
    )  # fmt: skip
    return str(crop_job(reader, config, NUM_WORKERS).build(folder / "scratch").path)


def load(path: Path) -> str:
    """Load batches and return what that took as JSON, after the first ones and after all."""
    import torch

    from selfdistill.data.loader import Loader

    loader = Loader(Shards.open(path), None, seed=0, flip=True, device=torch.device("cpu"))
    first = {}
    for batch in range(NUM_BATCHES):
        loader.load(np.arange(batch * BATCH, (batch + 1) * BATCH))
        if batch == BATCHES_TO_WARM_UP:
            first = memory_of("self")
    last = memory_of("self")
    return json.dumps({"early": first["anonymous"], "late": last["anonymous"]})


if __name__ == "__main__":
    print({"crop": crop, "load": load}[sys.argv[1]](Path(sys.argv[2])))
