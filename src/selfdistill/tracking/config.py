"""What tracking.yml says: whether MLflow is told of the rows' runs, where it is, how to wait."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, field_validator

from selfdistill.base_config import Config

Seconds = Annotated[float, Field(gt=0)]
LATE = "it has not taken everything long after the run's end; patience in tracking.yml"
_SQLITE = "sqlite:///"


class TrackingConfig(Config):
    """The keys of tracking.yml.

    Attributes:
        enabled: Whether MLflow is told of anything; if not, it is not even imported.
        uri: An MLflow server (http, https) or a database; the file of a relative `sqlite:///` is
            below the project's root.
        artifacts: Folder of pictures and files if `uri` is a database, below the project's root
            if it is relative; a server has its own.
        ui: Where `make ui` shows a database; the pages that lead to a run name it. A server shows
            itself.
        experiment: Name of the MLflow experiment that the runs are in.
        interval: Seconds between two looks at the training's curves, and between two attempts
            to reach an MLflow that fails.
        patience: Seconds that the end of a run waits, at most, for MLflow to take what is left.
    """

    enabled: bool = False
    uri: str = "sqlite:///mlflow.db"
    artifacts: str = "mlartifacts"
    ui: str = "http://127.0.0.1:5000"
    experiment: str = "selfdistill"
    interval: Seconds = 10.0
    patience: Seconds = 20.0

    @field_validator("uri")
    @classmethod
    def _is_server_or_database(cls, uri: str) -> str:
        if "://" not in uri or uri.startswith("file:"):
            shown = uri.rpartition("@")[2]
            raise ValueError(
                f"{shown!r} is neither a server nor a database: "
                "give http://HOST:PORT or sqlite:///FILE"
            )
        urlsplit(uri)
        return uri

    @classmethod
    def of_project(cls, values: Mapping[str, Any], root: Path) -> Self:
        """Validate the content of tracking.yml, and make its paths absolute.

        Args:
            values: The content.
            root: The project's root.

        Raises:
            ValueError: Naming each wrong key or value.
        """
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            mistakes = [
                f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
                for one in error.errors()
            ]
            raise ValueError(f"conf: tracking.yml: {'; '.join(mistakes)}") from None
        uri, artifacts = config.uri, str(root / config.artifacts)
        if uri.startswith(_SQLITE):
            uri = f"{_SQLITE}{root / uri.removeprefix(_SQLITE)}"
        return config.model_copy(update={"uri": uri, "artifacts": artifacts})


def without_password(uri: str) -> str:
    """Return a URI as it may be shown: without what stands before the @."""
    parts = urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else uri


def without_secrets(text: str, uri: str) -> str:
    """Return a text as it may be shown: without what stands before the @ of a URI, in any form."""
    userinfo = urlsplit(uri).netloc.rpartition("@")[0]
    password = userinfo.partition(":")[2]
    text = text.replace(uri, without_password(uri))
    for secret in (userinfo, unquote(userinfo), password, unquote(password)):
        if secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite database; None if `uri` is something else."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
