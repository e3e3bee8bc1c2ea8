"""What is checked before the first node runs."""

from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline

from selfdistill.config import ProjectConfig


class PreflightHooks:
    """Stop a run that could only fail hours later."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate all parameters, not only those of the pipeline that runs."""
        self._config = ProjectConfig.from_parameters(context.params)

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Check that the metrics can be computed, if the run gets that far."""
        if any(node.func.__name__ == "evaluate_samples" for node in pipeline.nodes):
            from selfdistill.metrics.extractors import check_evaluation

            check_evaluation(self._config.evaluation)
