"""raw -> images."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.preprocess import nodes


def create_pipeline(generate: str | None = None) -> Pipeline:
    """Return the stage for one data set; the registry gives it the data set's namespace.

    Args:
        generate: Embedded images that a node writes as raw images first: "digits", or none.

    Raises:
        ValueError: If there is no such generator.
    """
    crop = Node(
        nodes.crop_images,
        inputs=["raw", "params:preprocess", "params:distributed", "images_scratch"],
        outputs="images",
        name="crop_images",
    )
    if generate is None:
        return Pipeline([crop])
    if generate != "digits":
        raise ValueError(f"generate: {generate!r} is unknown; use 'digits' or leave it out")
    write = Node(nodes.write_digits, inputs=None, outputs="raw", name="write_digits")
    return Pipeline([write, crop])
