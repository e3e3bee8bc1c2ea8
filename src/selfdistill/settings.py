"""Kedro's project settings."""

import warnings
from typing import Any, ClassVar

from kedro.config import OmegaConfigLoader

from selfdistill.hooks import PreflightHooks, ProgressHooks

# Rows meet their datasets and tables across namespaces by design (`imagenet_256.images`).
warnings.filterwarnings("ignore", message="One or more dataset names contain '.' characters")


class ProjectConfigLoader(OmegaConfigLoader):
    """Kedro's loader, which remembers the last one made.

    The registry builds one pipeline a row, so it has to read the parameters of the environment
    that the session runs in, and Kedro hands it nothing.
    """

    latest: ClassVar["ProjectConfigLoader | None"] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ProjectConfigLoader.latest = self


CONFIG_LOADER_CLASS = ProjectConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # Rows of tiny say only how they differ from those of base.
    "merge_strategy": {"parameters": "soft"},
}
HOOKS = (PreflightHooks(), ProgressHooks())
