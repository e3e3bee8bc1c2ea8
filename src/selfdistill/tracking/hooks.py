"""Tell the tracking process what a Kedro run does to its rows; never wait, never fail."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline.node import Node

from selfdistill.config import ProjectConfig
from selfdistill.config_loader import LOADER_ARGS
from selfdistill.files import fingerprint
from selfdistill.pipelines.evaluate.nodes import evaluate_samples
from selfdistill.pipelines.sample.nodes import draw_grid, reconstruct, sample
from selfdistill.pipelines.train.config import MACHINE
from selfdistill.pipelines.train.nodes import draw_progress, extract_curves, train
from selfdistill.tracking.config import LATE, TrackingConfig, without_password, without_secrets
from selfdistill.tracking.origin import flattened
from selfdistill.tracking.row_run import FAILED, FINISHED, RUNNING, jobs_in

logger = logging.getLogger(__name__)

_TRACKED = {
    train,
    draw_progress,
    extract_curves,
    sample,
    reconstruct,
    draw_grid,
    evaluate_samples,
}


class TrackingProcess:
    """The process that speaks to MLflow, and the pipe to it.

    Args:
        config: Where MLflow is; with absolute paths.
        root: The project's root.
        warn: Takes what keeps the process from reaching MLflow.
    """

    def __init__(self, config: TrackingConfig, root: Path, warn: Callable[[str], None]) -> None:
        self._patience, self._warn = config.patience, warn
        self._process = subprocess.Popen(
            [sys.executable, "-m", "selfdistill.tracking.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, whose end it has to tell
        )
        assert self._process.stdin is not None
        self._pipe: IO[str] = self._process.stdin
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.send({"config": config.model_dump(mode="json"), "root": str(root)})

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand over a message; raise OSError if the process is gone."""
        self._pipe.write(json.dumps(message) + "\n")
        self._pipe.flush()

    def close(self) -> None:
        """Let the process send what is left, and wait for it as long as conf says."""
        late = False
        try:
            self.send({"do": "end"})
            self._pipe.close()
            self._process.wait(self._patience + 1)  # it leaves by itself
        except subprocess.TimeoutExpired:  # on a busy machine not even that
            late = True
            self._process.kill()
        except OSError:
            self._process.kill()
        self._process.wait()
        self._listener.join(1)
        if late:
            self._warn(LATE)
        elif self._process.returncode:
            self._warn(f"its process ended with status {self._process.returncode}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._warn(line.rstrip("\n"))


class TrackingHooks:
    """Make one MLflow run of a row's training, samples and metrics.

    What it takes from the run is a few milliseconds; MLflow is imported, reached and waited for in
    another process, which starts with the first node of a row that is worth telling.
    """

    def __init__(self) -> None:
        self._process: TrackingProcess | None = None
        self._config = TrackingConfig()
        self._rows: dict[str, str] = {}  # and their status
        self._failed = self._said = False

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep what says which rows there are."""
        self._context = context

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], catalog: CatalogProtocol) -> None:
        """Read tracking.yml.

        Raises:
            ValueError: If a key or value in it is wrong.
        """
        self._close()  # of a run before, in the same process, that a signal has ended
        self._run_params, self._catalog = run_params, catalog
        root = Path(self._context.project_path)
        try:
            values = self._context.config_loader["tracking"]
        except MissingConfigException:
            values = {}
        self._config = TrackingConfig.of_project(values, root)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Open the row's run, unless it is open, and say that it is at work."""
        with self._harmless(node) as row:
            if row is None:
                return
            if row not in self._rows:
                self._open(row, trains=node.func is train)
            _, _, part = str(node.namespace).partition(".")
            if part or node.func is train:
                self._send("stage", row, stage=part or "train")
            self._set_status(row, RUNNING)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Pass on checkpoint, curves, grid or metrics; each is the only output of its node."""
        with self._harmless(node) as row:
            if row not in self._rows:
                return
            _, _, part = str(node.namespace).partition(".")
            if node.func is train:
                self._take_checkpoint(row)
            elif node.func in (draw_progress, extract_curves, draw_grid, evaluate_samples):
                file = self._file_of(dataset_name)
                self._send("artifact", row, file=str(file), folder=part or "train")
            if node.func is evaluate_samples:
                self._send("metrics", row, metrics=_metrics(data, part))
            self._set_status(row, FINISHED)

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Say which rows were at work."""
        with self._harmless():
            for row, status in self._rows.items():
                if status == RUNNING:
                    self._send("status", row, status=FAILED)
        self._close()

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Wait a little for what is left."""
        self._close()

    def _close(self) -> None:
        process, self._process, self._rows = self._process, None, {}
        if process is not None:
            process.close()

    @contextmanager
    def _harmless(self, node: Node | None = None) -> Iterator[str | None]:
        """Give the row that a node belongs to, if it is tracked; no error leaves the block."""
        row = None
        if node is not None and self._config.enabled and not self._failed:
            name = str(node.namespace).partition(".")[0]
            is_row = "method" in (self._context.params.get(name) or {})
            row = name if is_row and node.func in _TRACKED else None
        try:
            yield row
        except Exception as error:
            self._failed = True
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, what: str) -> None:
        """Say once in this process that tracking does not work, and what to do."""
        if not self._said:
            self._said = True
            uri = self._config.uri
            logger.warning(
                f"MLflow at {without_password(uri)} is not told of this run: "
                f"{without_secrets(what, uri)}. "
                "The run goes on. Mend it, or give another `uri` or `enabled: false` in "
                f"conf/{self._context.env or LOADER_ARGS['default_run_env']}/tracking.yml"
            )

    def _send(self, do: str, row: str, **values: Any) -> None:
        if self._process is None:
            root = Path(self._context.project_path)
            self._process = TrackingProcess(self._config, root, self._warn)
        self._process.send({"do": do, "row": row, **values})

    def _set_status(self, row: str, status: str) -> None:
        self._rows[row] = status
        self._send("status", row, status=status)

    def _open(self, row: str, *, trains: bool) -> None:
        # Kedro has put models into the parameters by now; as a whole they come out as one thing.
        config = ProjectConfig.from_parameters(self._context.params)
        values = config.rows[row].model_dump(mode="json")
        dataset = config.datasets[values["data"]]
        around: dict[str, Any] = {"dataset": dataset.model_dump(mode="json")}
        for data in config.rows[row].sampled_data:
            if data != values["data"]:
                around[f"dataset_{data}"] = config.datasets[data].model_dump(mode="json")
        if dataset.teacher is not None:
            around["dataset_teacher"] = config.teachers[dataset.teacher].model_dump(mode="json")
        around["evaluation"] = config.evaluation_of(config.rows[row]).model_dump(mode="json")
        train = {key: value for key, value in values["train"].items() if key not in MACHINE}
        scratch = self._catalog.load(f"{row}.train_scratch")
        names = self._run_params.get("pipeline_names") or ["__default__"]
        self._send(
            "open",
            row,
            env=self._context.env,
            key=fingerprint({**values, "train": train}, around, self._context.env),
            params=flattened({**values, **around}),
            tags={"row": row, "env": str(self._context.env or "base")},
            origin={
                "pipeline": ", ".join(names),
                "distributed": config.distributed.model_dump_json(),
            },
            scratch=str(scratch.resolve()),
            jobs=jobs_in(scratch) if trains else None,
            page=str(self._file_of(f"{row}.curves").with_name("mlflow.html")),
        )
        self._rows[row] = RUNNING
        if not trains and self._catalog.exists(f"{row}.checkpoint"):
            self._take_checkpoint(row)

    def _file_of(self, entry: str) -> Path:
        dataset = self._catalog.get(entry)
        assert dataset is not None
        return Path(dataset._describe()["filepath"]).resolve()

    def _take_checkpoint(self, row: str) -> None:
        checkpoint = self._catalog.load(f"{row}.checkpoint")
        self._send(
            "checkpoint",
            row,
            job=checkpoint.about.get("fingerprint"),
            nimg=checkpoint.about.get("nimg", 0),
            curves=str(checkpoint.curves.resolve()),
        )


def _metrics(result: Mapping[str, Any], sampling: str) -> dict[str, float]:
    """Return the metrics of a sampling, and their deviations over repeats, as MLflow has them."""
    found = {f"{sampling}/{name}": value for name, value in result["metrics"].items()}
    return found | {
        f"{sampling}/{name}_std": value for name, value in result.get("std", {}).items()
    }
