"""What is checked before the first node runs, and what a run says of itself."""

import itertools
import logging
import os
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from selfdistill.config import ProjectConfig
from selfdistill.config_loader import LOADER_ARGS
from selfdistill.lifeline import die_with_parent, parent_in_session
from selfdistill.lineage.parameters import check_local
from selfdistill.pipelines.sample.nodes import sample
from selfdistill.pipelines.train.nodes import train

logger = logging.getLogger(__name__)

_LOCAL = LOADER_ARGS["default_run_env"]  # what git does not see


class PreflightHooks:
    """Stop a run that could only fail hours later."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate all parameters, not only those of the pipeline that runs.

        Raises:
            ValueError: If a parameter is wrong; in a stage of DVC, if conf/local changes a result.
        """
        if "DVC_STAGE" in os.environ:
            # DVC must not find this run at work when it is started again.
            die_with_parent(parent_in_session())
            if context.env in (None, _LOCAL):
                check_local(Path(context.config_loader.conf_source))
        # As the loader has them: `context.params` would build every pipeline there is.
        self._config = ProjectConfig.from_parameters(context.config_loader["parameters"])

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Check what the stages of this run need, before the first of them starts.

        Weights and reference files of the evaluation are fetched now, and all else that the run
        takes as given must be there: a training of a week must not end at a download, nor a sweep
        at a reference that nobody has made. A run of what is missing may do without: which nodes
        it leaves out is decided after this.

        Raises:
            ValueError: If the device is absent, or a batch does not divide among the ranks.
            FileNotFoundError: If the weights of a teacher or VAE are not where conf says.
            DatasetError: If something is not where the catalog says, or a file cannot be fetched or
                is not the one that it should be.
        """
        functions = {node.func for node in pipeline.nodes}
        given = sorted(pipeline.inputs())
        for entry in given:
            if entry.startswith(("weights.", "references.")):
                catalog.load(entry)
        data = [entry for entry in given if not entry.startswith("param")]
        for entry in data if not run_params.get("only_missing_outputs") else ():
            if entry in catalog and not catalog.exists(entry):
                catalog.load(entry)  # its own error names the place; what is optional loads as None
        for name in _named(given, "params:teachers."):
            from selfdistill.networks.dinov3 import weights_file

            weights_file(self._config.teachers[name])
        for name in _named(given, "params:vaes."):
            from selfdistill.networks.vae import weights_directory

            weights_directory(self._config.vaes[name])
        asking = [node for node in pipeline.nodes if node.func in (train, sample)]
        for row in {str(node.namespace).partition(".")[0] for node in asking}:
            self._check_text(row)
        if train in functions:
            from selfdistill.distributed import world_size

            for node in pipeline.nodes:
                if node.func is train:
                    config = self._config.rows[str(node.namespace)].train
                    assert config is not None  # a row without one has no such node
                    config.share_of_rank(world_size(self._config.distributed))

    def _check_text(self, name: str) -> None:
        """Fetch and check what reads a row's prompts, and build its network without values."""
        row = self._config.rows.get(name)
        if row is None or row.network.root.name != "text_unet":
            return
        import torch

        from selfdistill.methods.registry import build_network
        from selfdistill.networks.prompts import check_architecture, text_digest

        try:
            with torch.device("meta"):
                build_network(row.network)
            check_architecture(row.network.root.text)
            text_digest(row.network.root.text)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{name}.network: {error}") from error


def _named(inputs: list[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in inputs if name.startswith(prefix)]


class ProgressHooks:
    """Say which node runs."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Count the nodes to come."""
        self._number = itertools.count(1)
        self._num_nodes = len(pipeline.nodes)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Name the node and its place in the run."""
        logger.info("[%d/%d] %s", next(self._number), self._num_nodes, node.name)
