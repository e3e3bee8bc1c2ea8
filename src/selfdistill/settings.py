"""Kedro's project settings."""

import warnings

from kedro_viz.integrations.kedro.run_hooks import PipelineRunStatusHook

from selfdistill.config_loader import LOADER_ARGS, ProjectConfigLoader
from selfdistill.context import ProjectContext
from selfdistill.hooks import PreflightHooks, ProgressHooks
from selfdistill.tracking.hooks import TrackingHooks

# Rows meet their datasets and tables across namespaces by design (`imagenet_256.images`).
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")

CONTEXT_CLASS = ProjectContext
CONFIG_LOADER_CLASS = ProjectConfigLoader
CONFIG_LOADER_ARGS = LOADER_ARGS
# Of Kedro-Viz's hooks the one that colours nodes by how they went. The other imports pandas at the
# first load of any stage (0.3 s), and keeps the sizes of the last run's data frames alone.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-viz",)
HOOKS = (PreflightHooks(), ProgressHooks(), TrackingHooks(), PipelineRunStatusHook())
