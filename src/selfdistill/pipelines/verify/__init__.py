"""What a dataset has on disk, held against its manifests."""

from selfdistill.pipelines.verify.pipeline import create_pipeline

__all__ = ["create_pipeline"]
