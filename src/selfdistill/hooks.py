"""What is checked before the first node runs, and what a run says of itself."""

import logging
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from selfdistill.config import ProjectConfig

logger = logging.getLogger(__name__)


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


class ProgressHooks:
    """Say which node runs."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Count the nodes to come."""
        self._left = iter(range(1, len(pipeline.nodes) + 1))
        self._num_nodes = len(pipeline.nodes)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Name the node and its place in the run."""
        logger.info("[%d/%d] %s", next(self._left), self._num_nodes, node.name)
