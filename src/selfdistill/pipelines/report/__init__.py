"""Report: a paper's table, sheet and curves; a study; the pick of a sweep; figures."""

from selfdistill.pipelines.report.pipeline import (
    create_figure_pipeline,
    create_pipeline,
    create_study_pipeline,
    create_sweep_pipeline,
)

__all__ = [
    "create_figure_pipeline",
    "create_pipeline",
    "create_study_pipeline",
    "create_sweep_pipeline",
]
