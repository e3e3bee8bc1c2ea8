"""images, features -> checkpoint, curves."""

from collections.abc import Sequence
from typing import Literal

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.train import nodes

_FEATURES: dict[str | None, dict[str, str]] = {
    "cached": {"features": "features"},
    "online": {"teacher": "params:teacher"},
    None: {},
}


def create_pipeline(
    weights: Sequence[str], *, teacher: Literal["cached", "online"] | None
) -> Pipeline:
    """Return the stage for one row; the registry gives it the row's namespace.

    Args:
        weights: Names of the files of frozen networks that the row's objective needs.
        teacher: Where it has a teacher's features from: disk, or the teacher; None: it needs none.
    """
    return Pipeline(
        [
            Node(
                nodes.train_beside_teacher if teacher == "online" else nodes.train,
                inputs={
                    "images": "images",
                    **_FEATURES[teacher],
                    "network": "params:network",
                    "method": "params:method",
                    "train": "params:train",
                    "distributed": "params:distributed",
                    "scratch": "train_scratch",
                    **{name: f"weights.{name}" for name in weights},
                },
                outputs="checkpoint",
                name="train",
            ),
            Node(
                nodes.extract_curves, inputs="checkpoint", outputs="curves", name="extract_curves"
            ),
        ]
    )
