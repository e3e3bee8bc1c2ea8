"""checkpoint -> samples, grid, npz."""

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.sample import nodes


def create_pipeline() -> Pipeline:
    """Return the stage for one sampling of a row; the registry gives it its namespace."""
    return Pipeline(
        [
            Node(
                nodes.sample,
                inputs=[
                    "checkpoint",
                    "images",
                    "params:sample",
                    "params:distributed",
                    "sample_scratch",
                ],
                outputs="samples",
                name="sample",
            ),
            Node(nodes.draw_grid, inputs="samples", outputs="grid", name="draw_grid"),
            Node(nodes.export_npz, inputs="samples", outputs="npz", name="export_npz"),
        ]
    )
