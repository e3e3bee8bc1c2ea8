"""Stage 1: raw images of any size and format -> cropped uint8 images in shards."""

from selfdistill.pipelines.preprocess.pipeline import (
    create_pipeline,
    create_repair_pipeline,
    create_share_pipeline,
)

__all__ = ["create_pipeline", "create_repair_pipeline", "create_share_pipeline"]
