"""images -> features."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.features import nodes


def create_pipeline() -> Pipeline:
    """Return the stage for one data set; the registry gives it the data set's namespace."""
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
