"""Export: a row's checkpoint -> a directory that others can use, with a model card."""

from selfdistill.pipelines.export.pipeline import create_pipeline

__all__ = ["create_pipeline"]
