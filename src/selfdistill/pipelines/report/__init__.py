"""Report: metrics, sample grids and curves of a paper's rows -> table, sheet and curves."""

from selfdistill.pipelines.report.pipeline import create_pipeline

__all__ = ["create_pipeline"]
