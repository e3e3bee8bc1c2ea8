"""Beside all stages: steps, time and quality of samplings that follow from each other."""

from selfdistill.pipelines.tradeoff.pipeline import create_pipeline

__all__ = ["create_pipeline"]
