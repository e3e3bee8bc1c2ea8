"""images -> features."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.features import nodes

_INPUTS = {
    "images": "images",
    "teacher": "params:teacher",
    "distributed": "params:distributed",
    "scratch": "features_scratch",
    "place": "features_place",
}


def create_pipeline() -> Pipeline:
    """Return the stage for one dataset; the registry gives it the dataset's namespace."""
    cache = Node(nodes.cache_features, inputs=_INPUTS, outputs="features", name="cache_features")
    return Pipeline([cache])


def create_share_pipeline() -> Pipeline:
    """Return one host's share of the stage, which publishes nothing."""
    share = Node(
        nodes.cache_features_share, inputs=_INPUTS, outputs=None, name="cache_features_share"
    )
    return Pipeline([share])


def create_repair_pipeline() -> Pipeline:
    """Return the repair of published features; their images must be whole."""
    repair = Node(
        nodes.repair_features,
        inputs=_INPUTS,
        outputs=None,
        name="repair_features",
    )
    return Pipeline([repair])
