"""images, features -> checkpoint, curves."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.train import nodes


def create_pipeline() -> Pipeline:
    """Return the stage for one row; the registry gives it the row's namespace."""
    return Pipeline(
        [
            Node(
                nodes.train,
                inputs=[
                    "images",
                    "features",
                    "params:network",
                    "params:method",
                    "params:train",
                    "params:distributed",
                    "train_scratch",
                ],
                outputs="checkpoint",
                name="train",
            ),
            Node(
                nodes.extract_curves, inputs="checkpoint", outputs="curves", name="extract_curves"
            ),
        ]
    )
