"""A row's MLflow run: what has been learned of the row, and what of it MLflow has."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.files import atomic_path
from selfdistill.tracking.ledger import LEDGER, Entry, Ledger
from selfdistill.tracking.origin import numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
_CURVES = "curves.jsonl"
# What MLflow takes at once, and of one value; tags are as many as parameters.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_KEY, _LONGEST_VALUE = 1000, 100, 250, 6000


@dataclass(frozen=True)
class Tracker:
    """An MLflow that answers.

    Attributes:
        client: What speaks to it.
        uri: Where it is, without a password.
        ui: Where a browser finds it.
        experiment_id: The experiment of the runs.
    """

    client: "MlflowClient"
    uri: str
    ui: str
    experiment_id: str


class Tail:
    """The lines of a file that grows: those that came since the last reading."""

    def __init__(self) -> None:
        self._inode, self._offset = 0, 0

    def read(self, file: Path) -> list[dict[str, Any]]:
        """Return the new whole lines; all of them if the file was replaced; none if it is gone."""
        try:
            with file.open("rb") as stream:
                state = os.fstat(stream.fileno())  # `file` may be another by now
                if state.st_ino != self._inode or state.st_size < self._offset:
                    self._inode, self._offset = state.st_ino, 0
                stream.seek(self._offset)
                text, newline, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(text) + len(newline)
        return [json.loads(line) for line in text.splitlines()]


@dataclass
class Curves:
    """JSON lines that become metrics, each at the images seen.

    Attributes:
        prefix: What stands before the names of the metrics.
        marker: The metric whose last step says what MLflow has already.
        last: That step; None as long as it is unknown.
    """

    prefix: str
    marker: str
    last: int | None = None
    tail: Tail = field(default_factory=Tail)

    def send(self, file: Path, client: "MlflowClient", run_id: str) -> None:
        """Send what MLflow does not have yet; after an error, the next call begins with it."""
        from mlflow.entities import Metric

        if self.last is None:
            points = client.get_metric_history(run_id, self.marker)
            self.last = max((point.step for point in points), default=-1)
        now = int(time.time() * 1000)
        batch: list[Metric] = []
        try:
            for line in self.tail.read(file):
                nimg = int(line.pop("nimg"))
                if nimg <= self.last:
                    continue
                named = numbers(line, self.prefix)
                if len(batch) + len(named) > _MOST_METRICS:
                    self._log(client, run_id, batch)
                    batch = []
                batch += [Metric(name, value, now, nimg) for name, value in named.items()]
            self._log(client, run_id, batch)
        except Exception:
            self.tail = Tail()
            raise

    def _log(self, client: "MlflowClient", run_id: str, batch: list[Any]) -> None:
        if batch:
            client.log_batch(run_id, metrics=batch)
            self.last = batch[-1].step


class RowRun:
    """A row's MLflow run. Messages change it; `send` tells MLflow what it has not been told.

    Args:
        row: Key of the row.
        key: Fingerprint of the row's parameters.
        params: Those, flattened.
        tags: What else is known of the run, whatever the stage.
        origin: Tags that say what the process's stages come from; each has its stage before it.
        scratch: Where the row's trainings keep their unfinished jobs.
        jobs: None if the process takes a checkpoint as it is; if it trains, what `jobs_in` found
            before it began.
        page: A page of HTML that leads to the run, for the report to link to; None: there is none.
    """

    def __init__(
        self,
        *,
        row: str,
        key: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        origin: Mapping[str, str],
        scratch: str,
        jobs: Mapping[str, int] | None,
        page: str | None = None,
    ) -> None:
        self.row, self.status = row, RUNNING
        self._key, self._params, self._tags = key, dict(params), dict(tags)
        self._origin, self._stages = dict(origin), set[str]()
        self._scratch, self._jobs, self._page = Path(scratch), jobs, Path(page or "")
        self._ledger = Ledger(self._scratch.parent / LEDGER)
        self._job: str | None = None
        self._nimg, self._trained = 0, False
        self._curves: Path | None = None
        self._train = Curves("train/", "train/loss")
        self._speed = Curves("speed/", "speed/images_per_second")
        self._entry: Entry | None = None
        self._told = ""
        self._known: dict[str, float] = {}
        self._metrics: list[dict[str, float]] = []
        self._artifacts: list[tuple[str, str]] = []
        self._page_due = page is not None

    def take_stage(self, stage: str) -> None:
        """Note that a stage is at work: "train", or the name of a sampling."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._tags |= {f"{stage}.{key}": value for key, value in self._origin.items()}

    def take_checkpoint(self, job: str | None, nimg: int, curves: str) -> None:
        """Note the checkpoint that samples and metrics come from, just trained or found."""
        self._job, self._nimg, self._curves, self._trained = job, nimg, Path(curves), True
        if job:
            self._tags["checkpoint"] = job

    def take_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note metrics of the checkpoint."""
        self._metrics.append(dict(metrics))

    def take_artifact(self, file: str, folder: str) -> None:
        """Note a file, and the folder among the artifacts that it goes to."""
        self._artifacts.append((file, folder))

    def end(self) -> None:
        """Note that the process is gone; what ran then was killed."""
        if self.status == RUNNING:
            self.status = KILLED

    def send(self, tracker: Tracker) -> None:
        """Tell MLflow what is new.

        Raises:
            Exception: Of whatever kind; what has not been sent is kept for another call.
        """
        if self._jobs is not None and self._curves is None:
            self._find_job(self._jobs)
        if self._entry is None:
            if self._jobs is not None and self._job is None and self.status == RUNNING:
                return  # which training it is, and so which run, is not known yet
            self._begin(tracker)
        assert self._entry is not None
        client, run_id = tracker.client, self._entry.run_id
        self._tell(client, run_id)
        if self._curves is not None:
            self._train.send(self._curves, client, run_id)
        if self._jobs is not None and self._job:
            self._speed.send(self._scratch / f"{self._job}.speed.jsonl", client, run_id)
        job = self._job or self._entry.job
        trained = self._trained or self._entry.trained
        self._entry = self._ledger.note(self._entry, job=job, trained=trained)
        self._send_metrics(client, run_id)
        if self.status != self._told:
            if self.status == RUNNING:
                client.update_run(run_id, status=RUNNING)
            else:
                client.set_terminated(run_id, status=self.status)
            self._told = self.status
        try:
            self._send_artifacts(client, run_id)
        finally:
            if self._page_due:
                _write_page(self._page, tracker.ui, self._entry)
                self._page_due = False

    def _find_job(self, before: Mapping[str, int]) -> None:
        """Find the training at work: the job that has changed since its node began."""
        changed = {
            name: time for name, time in jobs_in(self._scratch).items() if time != before.get(name)
        }
        if changed:
            self._job = max(changed, key=lambda name: changed[name])
            self._curves = self._scratch / self._job / _CURVES

    def _begin(self, tracker: Tracker) -> None:
        """Go on with the row's run, or start one."""
        with self._ledger.alone():
            found = self._ledger.find(
                tracker.uri, self._key, self._job, trains=self._jobs is not None
            )
            run = _active(tracker.client, found.run_id) if found else None
            if found and run:
                self._entry = found
                self._known = dict(run.data.metrics)
                self._params = {
                    key: value
                    for key, value in self._params.items()
                    if key not in run.data.params  # MLflow's parameters never change
                }
            else:
                new = tracker.client.create_run(tracker.experiment_id, run_name=self.row)
                self._train.last = self._speed.last = -1
                self._told = RUNNING
                self._entry = Entry(
                    uri=tracker.uri,
                    experiment_id=tracker.experiment_id,
                    run_id=new.info.run_id,
                    key=self._key,
                    job=self._job,
                    trained=self._trained,
                )
                self._ledger.keep(self._entry)
        if "git_sha" in self._origin and (self._jobs is not None or not found or not run):
            self._tags["mlflow.source.git.commit"] = self._origin["git_sha"]  # MLflow shows one

    def _tell(self, client: "MlflowClient", run_id: str) -> None:
        """Send parameters and tags."""
        from mlflow.entities import Param, RunTag

        while self._params:
            keys = list(self._params)[:_MOST_PARAMS]
            cut = [Param(key[:_LONGEST_KEY], self._params[key][:_LONGEST_VALUE]) for key in keys]
            client.log_batch(run_id, params=cut)
            for key in keys:
                del self._params[key]
        while self._tags:
            keys = list(self._tags)[:_MOST_PARAMS]
            tags = [RunTag(key, self._tags[key][:_LONGEST_VALUE]) for key in keys]
            client.log_batch(run_id, tags=tags)
            for key in keys:
                del self._tags[key]

    def _send_metrics(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Metric

        while self._metrics:
            now = int(time.time() * 1000)
            new = {k: v for k, v in self._metrics[0].items() if self._known.get(k) != v}
            batch = [Metric(name, value, now, self._nimg) for name, value in new.items()]
            client.log_batch(run_id, metrics=batch)
            self._known |= self._metrics.pop(0)

    def _send_artifacts(self, client: "MlflowClient", run_id: str) -> None:
        while self._artifacts:
            file, folder = self._artifacts[0]
            client.log_artifact(run_id, file, folder)
            self._artifacts.pop(0)


def _write_page(file: Path, ui: str, entry: Entry) -> None:
    """Write a page that leads on to a run."""
    place = f"{ui.rstrip('/')}/#/experiments/{entry.experiment_id}/runs/{entry.run_id}"
    with atomic_path(file) as temporary:
        temporary.write_text(
            f'<!doctype html>\n<meta http-equiv="refresh" content="0; url={place}">\n'
            f'<a href="{place}">MLflow run {entry.run_id}</a>\n',
            encoding="utf-8",
        )


def jobs_in(scratch: Path) -> dict[str, int]:
    """Return when each of a row's unfinished trainings was last written to, by fingerprint."""
    jobs = {}
    for folder in scratch.iterdir() if scratch.is_dir() else ():
        if folder.is_dir() and not folder.suffix and not folder.name.startswith("."):
            curves = folder / _CURVES
            places = [folder, curves] if curves.is_file() else [folder]
            jobs[folder.name] = max(place.stat().st_mtime_ns for place in places)
    return jobs


def _active(client: "MlflowClient", run_id: str) -> "Run | None":
    """Return a run; None if the tracker does not know it, or it was deleted there."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
