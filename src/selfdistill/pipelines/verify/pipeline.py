"""images, features, latents -> nothing, or an error."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.verify import nodes


def create_pipeline(sets: Sequence[str]) -> Pipeline:
    """Return the check of one dataset; the registry gives it the dataset's namespace.

    Args:
        sets: Names of its shard sets: "images", "features", "sd.latents".
    """
    places = {name.replace(".", "_"): f"{name}_place" for name in sets}
    verify = Node(
        nodes.verify_shards,
        inputs={"distributed": "params:distributed", **places},
        outputs=None,
        name="verify_shards",
    )
    return Pipeline([verify])
