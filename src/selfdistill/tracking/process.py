"""The process that tells MLflow of a run: `python -m selfdistill.tracking.process`.

It reads JSON lines from its standard input, the settings first and then messages as
`hooks.TrackingHooks` sends them, and writes at most one line: what keeps it from reaching MLflow.
Whatever happens to the tracker happens here, and the run does not notice. The message "end", or the
end of its input when the run was killed, makes it send what is left and leave.
"""

import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from selfdistill.tracking.config import (
    LATE,
    TrackingConfig,
    sqlite_file,
    without_password,
    without_secrets,
)
from selfdistill.tracking.origin import origin_tags
from selfdistill.tracking.row_run import RowRun, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 1.0  # how long another writer of the database may take
# MLflow is patient and talkative by itself, and reports its use; a user's own settings stay.
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_END = None
_ORPHAN_SECONDS = 8.0  # how long it outlives a run that was killed


class Reporter:
    """Takes messages about rows and passes them on to MLflow, in its own time.

    Args:
        config: Where MLflow is; with absolute paths.
        root: The project's root.
        out: Where a user is told that MLflow cannot be reached.
    """

    def __init__(self, config: TrackingConfig, root: Path, out: IO[str]) -> None:
        self._config, self._root, self._out = config, root, out
        self._rows: dict[str, RowRun] = {}
        self._tracker: Tracker | None = None
        self._said = False
        self._unfinished: Path | None = None  # a database in the making

    def work(self, messages: "SimpleQueue[dict[str, Any] | None]") -> None:
        """Take messages until their end."""
        parent = os.getppid()
        while True:
            batch: list[dict[str, Any] | None] = []
            with suppress(Empty):
                batch.append(messages.get(timeout=self._config.interval))
                while True:
                    batch.append(messages.get_nowait())
            ended = _END in batch or os.getppid() != parent
            for message in batch:
                if message is not _END:
                    self.take(**message)
            if ended:
                for row in self._rows.values():
                    row.end()
            self.send()
            if ended:
                return

    def take(self, do: str, row: str, **values: Any) -> None:
        """Note what a message says of a row.

        Args:
            do: "open", or what to do with an open row: "stage", "status", "checkpoint",
                "metrics", "artifact".
            row: Key of the row.
            values: As the method of `RowRun` takes them; "open" has Kedro's `env` beside.
        """
        if do == "open":
            # Now, not when MLflow answers: the code is what the run has started with.
            values["origin"] |= origin_tags(self._root, row, values.pop("env"))
            self._rows[row] = RowRun(row=row, **values)
        elif do == "stage":
            self._rows[row].take_stage(**values)
        elif do == "status":
            self._rows[row].status = values["status"]
        elif do == "checkpoint":
            self._rows[row].take_checkpoint(**values)
        elif do == "metrics":
            self._rows[row].take_metrics(**values)
        else:
            self._rows[row].take_artifact(**values)

    def send(self) -> None:
        """Tell MLflow what is new; an error is said once and tried again at the next call."""
        if not self._rows:
            return
        try:
            tracker = self._reach()
        except Exception as error:
            self.say(_first_line(error))
            return
        for row in self._rows.values():
            try:
                row.send(tracker)
            except Exception as error:
                self.say(_first_line(error))

    def say(self, what: str) -> None:
        """Say once what is wrong."""
        if self._said:
            return
        self._said = True
        with suppress(OSError):  # the run is gone
            self._out.write(f"{without_secrets(what, self._config.uri)[:300]}\n")
            self._out.flush()

    def give_up(self) -> None:
        """Leave at once, with whatever was not sent."""
        self.say(LATE)
        if self._unfinished is not None:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        os._exit(0)

    def _reach(self) -> Tracker:
        """Return MLflow, if it can be written to now."""
        file = sqlite_file(self._config.uri)
        if self._tracker is None:
            import mlflow

            if file is not None and not file.is_file():
                self._make_database(file)
            if file is not None:
                _check_lock(file)
            client = mlflow.MlflowClient(self._config.uri)
            uri = without_password(self._config.uri)
            ui = uri if uri.startswith("http") else self._config.ui
            self._tracker = Tracker(client, uri, ui, self._experiment(client))
        elif file is not None:
            _check_lock(file)
        return self._tracker

    def _experiment(self, client: "MlflowClient") -> str:
        found = client.get_experiment_by_name(self._config.experiment)
        if found is not None:
            return found.experiment_id
        served = self._config.uri.startswith("http")
        place = None if served else Path(self._config.artifacts).as_uri()
        return client.create_experiment(self._config.experiment, artifact_location=place)

    def _make_database(self, file: Path) -> None:
        """Make MLflow's database, whole or not at all: its tables take a second or more.

        The file of another process that was faster is left as it is.
        """
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        file.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished = Path(tempfile.mkdtemp(prefix=f".{file.name}.", dir=file.parent))
        try:
            new = self._unfinished / file.name
            store = SqlAlchemyStore(f"sqlite:///{new}", Path(self._config.artifacts).as_uri())
            store.engine.dispose()
            with suppress(FileExistsError):
                os.link(new, file)
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished = None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_lock(file: Path) -> None:
    """Raise sqlite3.OperationalError if a database cannot be written to.

    MLflow itself would ask again and again, for minutes.
    """
    with closing(sqlite3.connect(file, timeout=_LOCK_SECONDS, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")


def main() -> None:
    """Read settings and messages from standard input."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print is not for the run
    settings = json.loads(sys.stdin.readline())
    for name, value in _MLFLOW.items():
        os.environ.setdefault(name, value)
    os.nice(5)  # a training on the CPU goes first
    # Sent to all processes of a job, whose end is to be told.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = TrackingConfig.model_validate(settings["config"])
    reporter = Reporter(config, Path(settings["root"]), out)
    messages: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def read() -> None:
        seconds = min(config.patience, _ORPHAN_SECONDS)
        for line in sys.stdin:
            message = json.loads(line)
            if message["do"] == "end":
                seconds = config.patience
                break
            messages.put(message)
        timer = threading.Timer(seconds, reporter.give_up)
        timer.daemon = True
        timer.start()
        messages.put(_END)

    threading.Thread(target=read, daemon=True).start()
    try:
        reporter.work(messages)
    except Exception as error:  # a defect of ours is no reason to disturb the run either
        logger.exception("tracking")
        reporter.say(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
