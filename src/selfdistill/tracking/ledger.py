"""Which MLflow runs a row has: a small JSON beside the row's unfinished jobs.

It is what joins processes. A row's training, samples and metrics may be made by a process each, and
a training may be killed and taken up again: all of them are one MLflow run. If the file is lost,
nothing breaks; the next process starts a new run.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from selfdistill.files import alone, write_json

LEDGER = "tracking.json"
_MOST = 50  # runs that are remembered


@dataclass(frozen=True)
class Entry:
    """An MLflow run of a row.

    Attributes:
        uri: The tracker, without a password.
        experiment_id: MLflow's number of the experiment.
        run_id: MLflow's name of the run.
        key: Fingerprint of the row's parameters.
        job: Fingerprint of the training; None as long as nobody knows.
        trained: Whether the training has ended with a checkpoint.
    """

    uri: str
    experiment_id: str
    run_id: str
    key: str
    job: str | None
    trained: bool


class Ledger:
    """The runs of a row, the latest last.

    Args:
        file: Where they are written down.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def entries(self) -> list[Entry]:
        """Return the runs; none if the file is absent or damaged."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return [Entry(**values) for values in found["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from finding or making a run of the row meanwhile."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with alone(self._file.with_suffix(".lock")):
            yield

    def find(self, uri: str, key: str, job: str | None, *, trains: bool) -> Entry | None:
        """Return the run that a process goes on with; None if it is to start one.

        Args:
            uri: The tracker, without a password.
            key: Fingerprint of the row's parameters.
            job: Fingerprint of the training or of the checkpoint; None if unknown.
            trains: Whether the process trains: it goes on with an unfinished training only.
                Otherwise it goes on with the run that its checkpoint is of.
        """
        for entry in reversed(self.entries()):
            if (entry.uri, entry.key) != (uri, key):
                continue
            if trains and not entry.trained and (not job or entry.job in (None, job)):
                return entry
            if not trains and entry.job == job:
                return entry
        return None

    def keep(self, entry: Entry) -> None:
        """Write down a run, or what is new of it."""
        others = [other for other in self.entries() if other.run_id != entry.run_id]
        runs = [asdict(one) for one in (*others, entry)][-_MOST:]
        write_json(self._file, {"runs": runs})

    def note(self, entry: Entry, **news: str | bool | None) -> Entry:
        """Write down what is new of a run, and return it."""
        changed = replace(entry, **news)  # type: ignore[arg-type]
        if changed != entry:
            with self.alone():
                self.keep(changed)
        return changed
