"""Before all stages: what rows will cost, of their parameters alone."""

from selfdistill.pipelines.plan.pipeline import (
    create_dataset_pipeline,
    create_row_pipeline,
    create_table_pipeline,
)

__all__ = ["create_dataset_pipeline", "create_row_pipeline", "create_table_pipeline"]
