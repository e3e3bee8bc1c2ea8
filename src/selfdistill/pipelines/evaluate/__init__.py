"""Evaluate: images -> reference, once a dataset; samples -> metrics, once a sampling of a row."""

from selfdistill.pipelines.evaluate.pipeline import create_pipeline, create_reference_pipeline

__all__ = ["create_pipeline", "create_reference_pipeline"]
