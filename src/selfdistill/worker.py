"""One rank: `python -m selfdistill.worker MODULE:FUNCTION SPEC DEVICE [STARTER]`.

Started by `selfdistill.distributed.launch` through torch elastic, as `torchrun` would start it. The
function is one of the stages' `run(spec, world)`; Kedro is not imported here.
"""

import argparse
import faulthandler
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

from selfdistill.distributed import die_with_parent, joined, reporting

_STAGES = ("train", "features", "latents", "sample", "evaluate")


def resolve(target: str) -> tuple[str, str]:
    """Split "module:function", allowing only the stages' own entry points.

    Raises:
        ValueError: If the target lies elsewhere.
    """
    module, _, function = target.partition(":")
    if not any(module.startswith(f"selfdistill.pipelines.{stage}.") for stage in _STAGES):
        raise ValueError(f"{target!r} is no entry point of the stages {', '.join(_STAGES)}")
    return module, function


@reporting
def main(arguments: Sequence[str] | None = None) -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser(prog="python -m selfdistill.worker")
    parser.add_argument("target")
    parser.add_argument("spec", type=Path)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("starter", type=int, nargs="?", default=0)
    options = parser.parse_args(arguments)
    faulthandler.enable()  # where it was, if a signal ends it
    module, function = resolve(options.target)
    die_with_parent(options.starter)
    with joined(options.device) as world:
        level = logging.INFO if world.is_main else logging.WARNING
        logging.basicConfig(level=level, format=f"[rank {world.rank}] %(message)s")
        getattr(importlib.import_module(module), function)(options.spec, world)


if __name__ == "__main__":
    main()
