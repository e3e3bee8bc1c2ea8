"""checkpoint, metrics -> release."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.export import nodes


def create_pipeline(row: str, samplings: Sequence[str], *, decoded: bool = False) -> Pipeline:
    """Return the stage for one row; the registry gives it its namespace.

    Args:
        row: The row, for the card: a node does not see its namespace.
        samplings: The row's samplings, whose metrics the card shows; the node gets each as a
            keyword that says by its name which row and sampling it is.
        decoded: Whether the row samples latents, which a VAE decodes.
    """
    names = {
        "checkpoint": "checkpoint",
        "images": "images",
        "paper": "params:paper",
        "data": "params:data",
        "samplings": "params:samplings",
        "scratch": "export_scratch",
    }
    names |= {"latents": "params:latents", "vae": "params:vae"} if decoded else {}
    metrics = {f"{row}.{sampling}.metrics": f"{sampling}.metrics" for sampling in samplings}
    return Pipeline([Node(nodes.export, inputs=names | metrics, outputs="release", name="export")])
