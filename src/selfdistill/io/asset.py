"""Catalog entry of a file that somebody else publishes: fetched once, accepted by its sha256."""

import logging
import re
from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from selfdistill.files import atomic_path, origin_of, sha256_of, sha256_once, write_json

logger = logging.getLogger(__name__)

_DOWNLOAD_CHUNK = 1 << 20


class AssetDataset(AbstractDataset[NoReturn, Path]):
    """A published file, such as official weights; loads as its path when its sha256 is right.

    A file that is there is checked and never replaced. A file that is absent is downloaded; it
    appears under its name when it is whole and its sha256 is right, with a note beside it where it
    came from, `<name>.origin.json`.

    Args:
        url: Where it is published, by http or https; None if it cannot be downloaded just so.
        filepath: The file; its folder is made when needed.
        sha256: What its content must hash to, 64 hex digits; None: nobody here has seen the file,
            any is taken, and its digest is said so that it can be written down.
        metadata: For Kedro-Viz.

    Raises:
        ValueError: If `sha256` or `url` cannot be one.
    """

    def __init__(
        self,
        *,
        url: str | None,
        filepath: str,
        sha256: str | None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)):
            raise ValueError(
                f"sha256 {sha256!r} of {filepath} is not 64 hex digits; copy the whole digest that "
                "sha256sum prints for the right file"
            )
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(
                f"url {url!r} of {filepath} is not an http or https address; give one, or null"
            )
        self._url, self._filepath = url, Path(filepath)
        self._sha256 = None if sha256 is None else sha256.lower()
        self.metadata = metadata

    def load(self) -> Path:
        """Return the path of the file, downloaded if it is absent, with its sha256 checked.

        Raises:
            DatasetError: If the file is another one, or absent and cannot be downloaded. The
                message says what to do.
        """
        if not self._filepath.is_file():
            self._download()
        found = sha256_once(self._filepath)
        if self._sha256 is None:
            logger.warning(
                "%s is taken as it is, with sha256 %s: write that into its catalog entry if it is "
                "the right file",
                self._filepath,
                found,
            )
        elif found != self._sha256:
            remedy = f"fetch it from {self._url}" if self._url else "put the right file there"
            again = "run again to " if self._url else ""
            raise DatasetError(
                f"{self._filepath}: is not the expected file, or is damaged: expected sha256 "
                f"{self._sha256}, found {found}; delete it and {again}{remedy}"
            )
        return self._filepath

    def save(self, data: NoReturn) -> None:
        """Refuse: the file is published by somebody else."""
        raise DatasetError(f"{self._filepath} is a published file, not something to write")

    @property
    def given(self) -> dict[str, Any]:
        """What determines the content."""
        return {"sha256": self._sha256}

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"url": self._url, "filepath": str(self._filepath), "sha256": self._sha256}

    def _download(self) -> None:
        """Fetch the file; what is not the right file never gets its name."""
        if self._url is None:
            raise DatasetError(
                f"{self._filepath}: no file here, and no address to download it from; put the file "
                f"{f'with sha256 {self._sha256} ' if self._sha256 else ''}there"
            )
        from pooch import HTTPDownloader

        try:
            with atomic_path(self._filepath) as temporary:
                fetch = HTTPDownloader(progressbar=True, chunk_size=_DOWNLOAD_CHUNK)
                fetch(self._url, str(temporary), None)
                found = sha256_of(temporary)
                if self._sha256 not in (None, found):
                    raise ValueError(f"expected sha256 {self._sha256}, found {found}")
                write_json(origin_of(self._filepath), {"url": self._url, "sha256": found})
        except (OSError, ValueError) as error:  # those of requests are OSErrors
            raise DatasetError(
                f"{self._filepath}: could not be downloaded from {self._url}: {error}; fetch it by "
                "other means and put it there, or correct its catalog entry"
            ) from error
