"""images, features -> checkpoint, curves."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.train import nodes


def create_pipeline(weights: Sequence[str], *, features: bool) -> Pipeline:
    """Return the stage for one row; the registry gives it the row's namespace.

    Args:
        weights: Names of the files of frozen networks that the row's objective needs.
        features: Whether it needs a teacher's features.
    """
    return Pipeline(
        [
            Node(
                nodes.train,
                inputs={
                    "images": "images",
                    **({"features": "features"} if features else {}),
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
