"""The stage as two lists: one for a dataset's namespace, one for each sampling of a row."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.evaluate import nodes


def create_reference_pipeline() -> Pipeline:
    """Build the part that belongs to a dataset."""
    return Pipeline(
        [
            Node(
                nodes.describe_reference,
                inputs=["images", "params:evaluation"],
                outputs="reference",
                name="describe_reference",
            )
        ]
    )


def create_pipeline() -> Pipeline:
    """Build the part that belongs to one sampling of a row."""
    return Pipeline(
        [
            Node(
                nodes.evaluate_samples,
                inputs=["samples", "images", "reference", "params:evaluation"],
                outputs="metrics",
                name="evaluate",
            )
        ]
    )
