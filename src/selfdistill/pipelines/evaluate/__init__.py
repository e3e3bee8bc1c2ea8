"""Evaluate: images -> reference, once a dataset; samples -> metrics, once a sampling of a row."""

from selfdistill.pipelines.evaluate.pipeline import (
    create_compare_pipeline,
    create_pipeline,
    create_reference_pipeline,
    published_inputs,
    weights_inputs,
)

__all__ = [
    "create_compare_pipeline",
    "create_pipeline",
    "create_reference_pipeline",
    "published_inputs",
    "weights_inputs",
]
