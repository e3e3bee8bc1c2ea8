"""A stage beside features: the latents of a VAE of every image, computed once."""

from selfdistill.pipelines.latents.pipeline import (
    create_pipeline,
    create_repair_pipeline,
    create_share_pipeline,
)

__all__ = ["create_pipeline", "create_repair_pipeline", "create_share_pipeline"]
