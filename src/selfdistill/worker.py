"""One rank: `python -m selfdistill.worker MODULE:FUNCTION SPEC DEVICE`, or `... worker join`.

Started by `selfdistill.distributed.launch` through torch elastic, or by `torchrun` on other hosts,
which does not know the job: `join` learns it from a rank that does. The function is one of the
stages' `run(spec, world)`; Kedro is not imported here.
"""

import argparse
import faulthandler
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

from selfdistill.distributed import Job, joined, reporting
from selfdistill.lifeline import die_with_parent

_STAGES = ("train", "features", "latents", "sample", "evaluate")


def resolve(target: str) -> tuple[str, str]:
    """Split "module:function", allowing only the stages' own entry points, "...:run".

    Raises:
        ValueError: If the target is anything else.
    """
    module, _, function = target.partition(":")
    inside = any(module.startswith(f"selfdistill.pipelines.{stage}.") for stage in _STAGES)
    if not inside or function != "run":
        raise ValueError(f"{target!r} is no entry point of the stages {', '.join(_STAGES)}")
    return module, function


@reporting
def main(arguments: Sequence[str] | None = None) -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser(prog="python -m selfdistill.worker")
    parser.add_argument("target", help="MODULE:FUNCTION of a stage, or: join")
    parser.add_argument("spec", nargs="?", help="the JSON file that tells it what to do")
    parser.add_argument("device", nargs="?", choices=("cpu", "cuda"))
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--store", type=Path, help="a file by which the ranks of one host meet")
    parser.add_argument("--starter", type=int, default=0, help="process id of the parent")
    options = parser.parse_args(arguments)
    known = None
    if options.target != "join":
        if options.device is None:
            parser.error("name the target, its spec and the device, or only: join")
        resolve(options.target)
        known = Job(options.target, options.spec, options.device, options.strategy)
    faulthandler.enable()  # where it was, if a signal ends it
    die_with_parent(options.starter)
    with joined(known, options.store) as (job, world):
        module, function = resolve(job.target)
        level = logging.INFO if world.is_main else logging.WARNING
        logging.basicConfig(level=level, format=f"[rank {world.rank}] %(message)s")
        getattr(importlib.import_module(module), function)(Path(job.spec), world)


if __name__ == "__main__":
    main()
