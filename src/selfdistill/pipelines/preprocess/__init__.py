"""Stage 1: raw images of any size and format -> cropped uint8 images in shards."""

from selfdistill.pipelines.preprocess.pipeline import create_pipeline

__all__ = ["create_pipeline"]
