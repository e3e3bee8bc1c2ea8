"""images -> features."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.features import nodes


def create_pipeline() -> Pipeline:
    """Return the stage for one dataset; the registry gives it the dataset's namespace."""
    return Pipeline(
        [
            Node(
                nodes.cache_features,
                inputs=["images", "params:teacher", "params:distributed", "features_scratch"],
                outputs="features",
                name="cache_features",
            )
        ]
    )
