"""Report: a paper's table, sheet and curves; the figure of a study; the pick of a sweep."""

from selfdistill.pipelines.report.pipeline import (
    create_pipeline,
    create_study_pipeline,
    create_sweep_pipeline,
)

__all__ = ["create_pipeline", "create_study_pipeline", "create_sweep_pipeline"]
