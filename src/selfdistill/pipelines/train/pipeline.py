"""images, features, start -> checkpoint, curves; with the reference, of the best state."""

from collections.abc import Mapping, Sequence
from typing import Literal

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.train import nodes

_FEATURES: dict[str | None, dict[str, str]] = {
    "cached": {"features": "features"},
    "online": {"teacher": "params:teacher"},
    None: {},
}


def create_pipeline(
    weights: Sequence[str],
    *,
    teacher: Literal["cached", "online"] | None,
    starts: bool = False,
    taught: bool = False,
    selecting: Mapping[str, str] | None = None,
) -> Pipeline:
    """Return the stage for one row; the registry gives it the row's namespace.

    Args:
        weights: Names of the files of frozen networks that the row's objective needs.
        teacher: Where it has a teacher's features from: disk, or the teacher; None: it needs none.
        starts: Whether the network starts as another one.
        taught: Whether it learns from a checkpoint beside.
        selecting: What else it takes, by argument, to select its best state; None: it does not.
    """
    progress = Node(
        nodes.draw_progress, inputs="checkpoint", outputs="progress", name="draw_progress"
    )
    return Pipeline(
        [
            Node(
                nodes.train,
                inputs={
                    "images": "images",
                    **_FEATURES[teacher],
                    **({"start": "start"} if starts else {}),
                    **({"taught_by": "taught_by"} if taught else {}),
                    "network": "params:network",
                    "method": "params:method",
                    "train": "params:train",
                    "distributed": "params:distributed",
                    "scratch": "train_scratch",
                    **{name: f"weights.{name}" for name in weights},
                    **(selecting or {}),
                },
                outputs="checkpoint",
                name="train",
            ),
            Node(
                nodes.extract_curves, inputs="checkpoint", outputs="curves", name="extract_curves"
            ),
            *([progress] if selecting else []),
        ]
    )


def create_adopting_pipeline() -> Pipeline:
    """Return the stage for a row whose checkpoint is what it starts from, untrained."""
    return Pipeline(
        [
            Node(
                nodes.adopt,
                inputs={
                    "start": "start",
                    "network": "params:network",
                    "method": "params:method",
                    "scratch": "train_scratch",
                },
                outputs="checkpoint",
                name="adopt",
            )
        ]
    )
