"""Stage 2: a teacher's patch tokens of every image, computed once."""

from selfdistill.pipelines.features.pipeline import (
    create_pipeline,
    create_repair_pipeline,
    create_share_pipeline,
)

__all__ = ["create_pipeline", "create_repair_pipeline", "create_share_pipeline"]
