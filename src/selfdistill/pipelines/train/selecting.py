"""The way from a training to what selects its best state.

It is found by name, as methods and networks are: a row that selects nothing runs none of that code,
and is not made anew when a metric is mended. A row that does names it beside its own.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.data.shards import Shards
from selfdistill.distributed import World
from selfdistill.pipelines.train.best import Judge, Selection

MODULE = "selfdistill.pipelines.train.selection"


def prepare(
    images: Shards,
    selection: Any,
    sampling: Any,
    reference: Any,
    profile: str,
    latents: Any,
    vae: Any,
    weights: Mapping[str, Path],
) -> Selection | None:
    """Check what a row's best state is selected by; see `selection.prepare`. None for None."""
    if selection is None:
        return None
    found: Any = importlib.import_module(MODULE)
    prepared: Selection = found.prepare(
        images, selection, sampling, reference, profile, latents, vae, weights
    )
    return prepared


def judge_of(spec: Any, class_names: Sequence[str], world: World, directory: Path) -> Judge:
    """Return what measures a training on this rank; see `selection.SampleJudge`."""
    found: Any = importlib.import_module(MODULE)
    judge: Judge = found.SampleJudge(spec, class_names, world, directory)
    return judge
