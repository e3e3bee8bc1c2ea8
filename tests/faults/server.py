"""Runs of nodes for fault injection: each is a process of its own, forked after all imports.

A request is a line of JSON on standard input, an answer a line on standard output:
{"stage": ..., ...} starts a run and gives its process id; {"wait": pid} gives its exit code.
"""

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import timm  # noqa: F401  # and torch, once for all runs

from selfdistill.data.config import PreprocessConfig
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig
from selfdistill.io.raw_images import RawImagesDataset
from selfdistill.io.shards import PlaceDataset, ScratchDataset, ShardsDataset
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.pipelines.features import encode  # noqa: F401  # as timm
from selfdistill.pipelines.features.nodes import cache_features, repair_features
from selfdistill.pipelines.preprocess.nodes import crop_images, crop_images_share, repair_images


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(attempt(request))
        os.write(1, f"{answer}\n".encode())


def attempt(request: dict[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, ours in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, ours)
    try:
        if delay := request.get("slow_disk"):
            slow_down(delay)
        run(request)
    except BaseException as error:
        traceback.print_exc()
        os.write(2, f"\n{type(error).__name__}: {error}\n".encode())
        return 1
    return 0


def slow_down(delay: float) -> None:
    """Let flushing, renaming and copying last, so that a kill can come in between."""

    def slowed(function: Any) -> Any:
        def wait_and_call(*arguments: Any, **options: Any) -> Any:
            time.sleep(delay)
            result = function(*arguments, **options)
            time.sleep(delay)
            return result

        return wait_and_call

    os.fsync = slowed(os.fsync)
    shutil.copystat = slowed(shutil.copystat)  # type: ignore[assignment]  # of each copy, the last
    Path.rename = slowed(Path.rename)  # type: ignore[method-assign]
    Path.replace = slowed(Path.replace)  # type: ignore[method-assign]


def run(request: dict[str, Any]) -> None:
    """Do what Kedro does for a node: load what it takes, call it, save what it gives."""
    stage, data = request["stage"], Path(request["data"])
    machine = DistributedConfig.model_validate(request["machine"])
    kind = "features" if stage.endswith("features") else "images"
    place = PlaceDataset(path=str(data / kind)).load()
    published = ShardsDataset(path=str(place))
    scratch = ScratchDataset(path=request.get("scratch", str(data / "scratch" / kind))).load()
    if kind == "features":
        images = Shards.open(Path(request["images"]))
        teacher = TeacherConfig.model_validate(request["config"])
        if stage == "repair_features":
            repair_features(images, teacher, machine, scratch, place)
        else:
            published.save(cache_features(images, teacher, machine, scratch))
        return
    raw = RawImagesDataset(path=request["raw"], layout="class_folders").load()
    config = PreprocessConfig.model_validate(request["config"])
    if stage == "repair_images":
        repair_images(raw, config, machine, scratch, place)
    elif stage == "share_images":
        crop_images_share(raw, config, machine, scratch)
    else:
        published.save(crop_images(raw, config, machine, scratch))


if __name__ == "__main__":
    main()
