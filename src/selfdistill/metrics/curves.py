"""Training curves: which of a log's numbers are losses, and what they are called."""

from collections.abc import Iterable, Mapping
from typing import Any

Series = tuple[list[int], list[float]]


def loss_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Return the losses of a training log as curves, in the order of the log.

    Args:
        records: Lines of the log: {"nimg": int, "loss": float, "<turn>/<term>": float, ...}.

    Returns:
        By name the images seen and the values: "loss", the total, and the terms. A term is named
        without its turn where there is one turn only.
    """
    curves: dict[str, Series] = {}
    for record in records:
        for name in (name for name in record if name == "loss" or "/" in name):
            nimg, values = curves.setdefault(name, ([], []))
            nimg.append(record["nimg"])
            values.append(record[name])
    if len({name.split("/")[0] for name in curves if "/" in name}) > 1:
        return curves
    return {name.split("/", 1)[-1]: curve for name, curve in curves.items()}
