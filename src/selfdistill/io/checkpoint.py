"""Catalog entry of the train stage's result."""

import json

from kedro_datasets._typing import JSONPreview

from selfdistill.files import publish_directory
from selfdistill.io.directory import DirectoryDataset
from selfdistill.methods.checkpoint import Checkpoint


class CheckpointDataset(DirectoryDataset[Checkpoint, Checkpoint]):
    """A finished checkpoint, loaded as a handle; saving moves the directory into place.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    last_file = "checkpoint.json"

    def load(self) -> Checkpoint:
        """Open the checkpoint."""
        return Checkpoint.open(self._path)

    def save(self, data: Checkpoint) -> None:
        """Move a finished checkpoint here."""
        publish_directory(data.path, self._path)

    def preview(self) -> JSONPreview:
        """Show what the checkpoint says of itself."""
        return JSONPreview(json.dumps(self.load().about))
