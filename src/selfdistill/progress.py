"""How far a long stage is, at which rate, and how long it will still take."""

import sys
from typing import Any

from tqdm import tqdm

_SECONDS_ON_SCREEN, _SECONDS_IN_LOG = 0.5, 60.0


def progress(what: str, total: int, unit: str = "img", **options: Any) -> "tqdm[None]":
    """Return a bar; where there is no terminal, it is a line a minute.

    Args:
        what: What is done.
        total: Units to do.
        unit: Of what is counted; counts get an SI prefix.
        options: Others of tqdm's.
    """
    interval = _SECONDS_ON_SCREEN if sys.stderr.isatty() else _SECONDS_IN_LOG
    return tqdm(
        desc=what, total=total, unit=unit, unit_scale=True, smoothing=0.05, mininterval=interval,
        **options,
    )  # fmt: skip
