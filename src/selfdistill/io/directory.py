"""What the catalog entries of directories have in common."""

from pathlib import Path
from typing import Any, TypeVar

from kedro.io import AbstractDataset

_Saved = TypeVar("_Saved")
_Loaded = TypeVar("_Loaded")


class DirectoryDataset(AbstractDataset[_Saved, _Loaded]):
    """A directory under a fixed name, loaded as a handle: its files stay where they are.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    last_file = "."  # written last, so that the directory is whole if it is there

    def __init__(self, *, path: str, metadata: dict[str, Any] | None = None) -> None:
        self._path = Path(path)
        self.metadata = metadata

    @property
    def files(self) -> list[Path]:
        """What is tracked of it: the directory."""
        return [self._path]

    def _exists(self) -> bool:
        return (self._path / self.last_file).exists()

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}
