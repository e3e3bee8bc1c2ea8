"""Stage 4: a checkpoint's images, as many as the metrics ask for, and pictures of some."""

from selfdistill.pipelines.sample.pipeline import create_pipeline, create_reconstruction_pipeline

__all__ = ["create_pipeline", "create_reconstruction_pipeline"]
