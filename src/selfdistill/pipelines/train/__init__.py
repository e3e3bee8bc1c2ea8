"""Stage 3: one loop for all methods."""

from selfdistill.pipelines.train.pipeline import create_adopting_pipeline, create_pipeline

__all__ = ["create_adopting_pipeline", "create_pipeline"]
