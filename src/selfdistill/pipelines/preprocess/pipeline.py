"""raw -> images."""

from typing import Literal

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.preprocess import nodes

_INPUTS = {
    "raw": "raw",
    "preprocess": "params:preprocess",
    "distributed": "params:distributed",
    "scratch": "images_scratch",
    "place": "images_place",
}


def create_pipeline(generate: Literal["digits"] | None = None) -> Pipeline:
    """Return the stage for one dataset; the registry gives it the dataset's namespace.

    Args:
        generate: Embedded images that a node writes as raw images first.
    """
    crop = Node(nodes.crop_images, inputs=_INPUTS, outputs="images", name="crop_images")
    if generate is None:
        return Pipeline([crop])
    write = Node(nodes.write_digits, inputs=None, outputs="raw", name="write_digits")
    return Pipeline([write, crop])


def create_share_pipeline() -> Pipeline:
    """Return one host's share of the stage, which publishes nothing."""
    share = Node(nodes.crop_images_share, inputs=_INPUTS, outputs=None, name="crop_images_share")
    return Pipeline([share])


def create_repair_pipeline() -> Pipeline:
    """Return the repair of published images."""
    repair = Node(
        nodes.repair_images,
        inputs=_INPUTS,
        outputs="whole_images",
        name="repair_images",
    )
    return Pipeline([repair])
