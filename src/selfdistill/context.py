"""Kedro's context, with parameters that are quickly put into a catalog."""

from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.io import MemoryDataset


class ProjectContext(KedroContext):
    """Kedro's context for some thousand parameters.

    Kedro makes an entry of each parameter at each depth, and asks of each value anew whether it is
    a table, of pandas and of packages that are not there: seconds at the start of every run. A run
    gets entries of the parameters that its pipelines take, whose values are of YAML or models of
    them: they are copied deeply, as Kedro would decide.
    """

    def _get_parameters(self) -> dict[str, Any]:
        parameters = super()._get_parameters()
        if self._pipelines_to_validate is not None:
            taken = {
                name for run in self._pipelines_to_validate for name in pipelines[run].inputs()
            }
            parameters = {name: value for name, value in parameters.items() if name in taken}
        return {
            name: MemoryDataset(value, copy_mode="deepcopy") for name, value in parameters.items()
        }
