"""The stage as lists: for a dataset's namespace, for each sampling of a row, for what users bring.

The files of the extractors' weights are inputs of their own, `weights.<name>` in the catalog.
"""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.evaluate import nodes

_COMPARE = ("samples", "reference", "repeats", "evaluation")  # the keys of `CompareConfig`


def create_reference_pipeline(weights: Sequence[str], *, num_published: int = 0) -> Pipeline:
    """Build the part that belongs to a dataset.

    Args:
        weights: Names of the weights that the metrics' extractors take.
        num_published: How many reference files are inputs.
    """
    return Pipeline(
        [
            Node(
                nodes.describe_reference,
                inputs={
                    "images": "images",
                    "evaluation": "params:evaluation",
                    "distributed": "params:distributed",
                    "scratch": "reference_scratch",
                    **{name: name for name in published_inputs(num_published)},
                    **weights_inputs(weights),
                },
                outputs="reference",
                name="describe_reference",
            )
        ]
    )


def create_pipeline(weights: Sequence[str], *, repeated: bool = True) -> Pipeline:
    """Build the part that belongs to one sampling of a row.

    Args:
        weights: Names of the weights that the metrics' extractors take.
        repeated: Whether a parameter says how many repeats the samples are; otherwise they are one.
    """
    return Pipeline(
        [
            Node(
                nodes.evaluate_samples,
                inputs={
                    "samples": "samples",
                    "images": "images",
                    "reference": "reference",
                    "evaluation": "params:evaluation",
                    **({"repeats": "params:repeats"} if repeated else {}),
                    "distributed": "params:distributed",
                    "scratch": "evaluate_scratch",
                    **weights_inputs(weights),
                },
                outputs="metrics",
                name="evaluate",
            )
        ]
    )


def create_compare_pipeline(weights: Sequence[str]) -> Pipeline:
    """Build the evaluation of images that a user brings, in the namespace "compare".

    Args:
        weights: Names of the weights that the metrics' extractors take.
    """
    brought = Pipeline(
        [
            Node(
                nodes.open_brought,
                inputs=[
                    "params:samples",
                    "params:reference",
                    "params:evaluation",
                    "params:repeats",
                ],
                outputs=["brought_samples", "brought_reference"],
                name="open",
            )
        ]
    )
    parts = create_reference_pipeline(weights) + create_pipeline(weights)
    return Pipeline(
        brought
        + Pipeline(parts, inputs={"samples": "brought_samples", "images": "brought_reference"}),
        namespace="compare",
        inputs={entry: entry for entry in weights_inputs(weights).values()},
        parameters={
            **{f"params:{key}": f"params:compare.{key}" for key in _COMPARE},
            "params:distributed": "params:distributed",
        },
    )


def published_inputs(num: int) -> list[str]:
    """Return what reference files are called as inputs, in their order."""
    return ["published", *(f"published_{k}" for k in range(2, num + 1))][:num]


def weights_inputs(weights: Sequence[str]) -> dict[str, str]:
    """Return the catalog entries of weights by name."""
    return {name: f"weights.{name}" for name in weights}
