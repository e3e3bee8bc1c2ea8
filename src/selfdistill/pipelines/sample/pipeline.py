"""checkpoint -> samples, grid, npz; checkpoint, images -> their reconstructions."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.sample import nodes


def create_pipeline(
    *, exported: bool = True, decoded: bool = False, guided: bool = False
) -> Pipeline:
    """Return the stage for one sampling of a row; the registry gives it its namespace.

    Args:
        exported: Whether the samples are also written in ADM's format, for other evaluators.
        decoded: Whether the row samples latents, which a VAE decodes.
        guided: Whether another network than the row's guides.
    """
    export = Node(nodes.export_npz, inputs="samples", outputs="npz", name="export_npz")
    return Pipeline(
        [
            Node(
                nodes.sample,
                inputs={
                    "checkpoint": "checkpoint",
                    "images": "images",
                    "sample": "params:sample",
                    "distributed": "params:distributed",
                    "scratch": "sample_scratch",
                    **({"latents": "params:latents", "vae": "params:vae"} if decoded else {}),
                    **({"guide": "guide"} if guided else {}),
                },
                outputs="samples",
                name="sample",
            ),
            Node(nodes.draw_grid, inputs="samples", outputs="grid", name="draw_grid"),
            *([export] if exported else []),
        ]
    )


def create_reconstruction_pipeline() -> Pipeline:
    """Return the part that encodes and decodes the images of a dataset."""
    return Pipeline(
        [
            Node(
                nodes.reconstruct,
                inputs=[
                    "checkpoint",
                    "images",
                    "params:reconstruction",
                    "params:distributed",
                    "sample_scratch",
                ],
                outputs="samples",
                name="reconstruct",
            ),
            Node(nodes.draw_grid, inputs="samples", outputs="grid", name="draw_grid"),
        ]
    )
