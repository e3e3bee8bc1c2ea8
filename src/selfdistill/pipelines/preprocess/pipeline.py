"""raw -> images."""

from typing import Literal

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.preprocess import nodes


def create_pipeline(generate: Literal["digits"] | None = None) -> Pipeline:
    """Return the stage for one dataset; the registry gives it the dataset's namespace.

    Args:
        generate: Embedded images that a node writes as raw images first.
    """
    crop = Node(
        nodes.crop_images,
        inputs=["raw", "params:preprocess", "params:distributed", "images_scratch"],
        outputs="images",
        name="crop_images",
    )
    if generate is None:
        return Pipeline([crop])
    write = Node(nodes.write_digits, inputs=None, outputs="raw", name="write_digits")
    return Pipeline([write, crop])
