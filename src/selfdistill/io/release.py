"""Catalog entry of the export stage's result."""

import json

from kedro_datasets._typing import JSONPreview

from selfdistill.files import publish_directory
from selfdistill.io.directory import DirectoryDataset
from selfdistill.methods.release import Release


class ReleaseDataset(DirectoryDataset[Release, Release]):
    """A released checkpoint, loaded as a handle; saving moves the directory into place.

    Args:
        path: The directory.
        metadata: For Kedro-Viz.
    """

    last_file = "config.json"

    def load(self) -> Release:
        """Open the release; its weights are read when they are first needed."""
        return Release.at(self._path)

    def save(self, data: Release) -> None:
        """Move a written release here."""
        publish_directory(data.path, self._path)

    def preview(self) -> JSONPreview:
        """Show what the release says of itself."""
        return JSONPreview(json.dumps(self.load().config))
