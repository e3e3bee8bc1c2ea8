"""Rows whose stages end in an instant, told to a real MLflow by the real hooks."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from PIL import Image

from selfdistill.io.checkpoint import CheckpointDataset
from selfdistill.io.report import CurvesDataset, MetricsDataset, PictureDataset
from selfdistill.io.shards import ScratchDataset
from selfdistill.pipelines import evaluate, sample, train
from selfdistill.settings import CONFIG_LOADER_ARGS
from selfdistill.tracking.hooks import TrackingHooks

_PATIENCE = 180.0  # seconds until something that does not happen is given up


class Stages:
    """One process's share of some rows' stages: each call is what Kedro would tell the hooks.

    Attributes:
        hooks: The hooks of this process.
    """

    def __init__(self, root: Path, parameters: dict[str, Any], tracking: dict[str, Any]) -> None:
        self._root, self.hooks = root, TrackingHooks()
        entries: dict[str, Any] = {}
        for row in ("dsd_s", "dsd_m"):
            entries[f"{row}.train_scratch"] = ScratchDataset(path=str(self.scratch(row)))
            entries[f"{row}.checkpoint"] = CheckpointDataset(path=str(root / row / "checkpoint"))
            entries[f"{row}.curves"] = CurvesDataset(filepath=root / row / "curves.jsonl")
            plain = root / row / "plain"
            entries[f"{row}.plain.metrics"] = MetricsDataset(filepath=plain / "metrics.json")
            entries[f"{row}.plain.grid"] = PictureDataset(filepath=plain / "grid.png")
        self.catalog = DataCatalog(entries)
        context = SimpleNamespace(
            params=parameters, env="tiny", project_path=root, config_loader={"tracking": tracking}
        )
        self.hooks.after_context_created(context)
        self.hooks.before_pipeline_run({"pipeline_names": ["dsd"]}, self.catalog)

    def scratch(self, row: str) -> Path:
        return self._root / "scratch" / row / "train"

    def start_training(self, row: str) -> None:
        self.hooks.before_node_run(_node(train.create_pipeline((), teacher="cached"), row, "train"))

    def write_line(self, row: str, nimg: int, job: str = "job", **values: Any) -> None:
        """Write what a training writes at an interval."""
        folder = self.scratch(row) / job
        folder.mkdir(parents=True, exist_ok=True)
        line = {"nimg": nimg, "loss": 1 / nimg, "lr": 0.1, "diagnostics": {"rank_target": 7.5}}
        with (folder / "curves.jsonl").open("a") as file:
            file.write(json.dumps(line | values) + "\n")
        with folder.with_suffix(".speed.jsonl").open("a") as file:
            file.write(json.dumps({"nimg": nimg, "images_per_second": 10.0}) + "\n")

    def end_training(self, row: str, job: str = "job") -> None:
        """Publish the checkpoint and its curves as the train stage does."""
        place = self._root / row / "checkpoint"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.scratch(row) / job, place)
        shutil.rmtree(self.scratch(row) / job)
        (place / "weights.safetensors").touch()
        about = {"fingerprint": job, "nimg": 32}
        (place / "checkpoint.json").write_text(json.dumps(about))
        stage = train.create_pipeline((), teacher="cached")
        checkpoint = self.catalog.load(f"{row}.checkpoint")
        self.hooks.after_dataset_saved(f"{row}.checkpoint", checkpoint, _node(stage, row, "train"))
        self._run(_node(stage, row, "extract_curves"), f"{row}.curves", checkpoint.curves)

    def evaluate(self, row: str, **metrics: float) -> None:
        """Draw samples and measure them."""
        stages = sample.create_pipeline() + evaluate.create_pipeline([])
        namespace = f"{row}.plain"
        picture = Image.new("RGB", (8, 8))
        self._run(_node(stages, namespace, "draw_grid"), f"{namespace}.grid", picture)
        result = {"metrics": metrics, "std": dict.fromkeys(metrics, 0.5), "protocol": {}}
        self._run(_node(stages, namespace, "evaluate"), f"{namespace}.metrics", result)

    def _run(self, node: Node, entry: str, data: Any) -> None:
        self.hooks.before_node_run(node)
        self.catalog.save(entry, data)
        self.hooks.after_dataset_saved(entry, data, node)

    def end(self) -> None:
        """End the run well."""
        self.hooks.after_pipeline_run()

    def fail(self) -> None:
        """End the run with an error in the node at work."""
        self.hooks.on_pipeline_error()

    def die(self) -> None:
        """End the process without a word, as far as the tracking process can see."""
        process, self.hooks._process = self.hooks._process, None
        assert process is not None
        process._pipe.close()
        process._process.wait()


def _node(stage: Pipeline, namespace: str, name: str) -> Node:
    (found,) = (
        node
        for node in Pipeline(stage, namespace=namespace).nodes
        if node.name == f"{namespace}.{name}"
    )
    return found


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's, which takes it a while to make."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", str(folder)).engine.dispose()
    return folder / "mlflow.db"


@pytest.fixture
def uri(database: Path, tmp_path: Path) -> str:
    """A database without runs."""
    return f"sqlite:///{shutil.copy(database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def start(project: Path, tmp_path: Path, uri: str) -> Iterator[Callable[..., Stages]]:
    """Start a process's share; parameters may be changed, and tracking.yml too."""
    loader = OmegaConfigLoader(str(project / "conf"), env="tiny", **CONFIG_LOADER_ARGS)
    started: list[Stages] = []

    def start(changes: dict[str, Any] | None = None, **tracking: Any) -> Stages:
        parameters = loader["parameters"]
        for key, value in (changes or {}).items():
            row, part, name = key.split(".")
            parameters[row][part][name] = value
        yml = {"enabled": True, "uri": uri, "artifacts": "artifacts", "interval": 0.2}
        started.append(Stages(tmp_path, parameters, {**yml, "patience": 60.0, **tracking}))
        return started[-1]

    yield start
    for stages in started:
        stages.end()


class Found:
    """What MLflow has."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self.client = MlflowClient(uri)

    def runs(self) -> list[Any]:
        """All runs, the oldest first."""
        experiment = self.client.get_experiment_by_name("selfdistill")
        assert experiment is not None
        found = self.client.search_runs([experiment.experiment_id])
        return sorted(found, key=lambda run: run.info.start_time)

    def steps(self, run: Any, metric: str = "train/loss") -> list[int]:
        return [point.step for point in self.client.get_metric_history(run.info.run_id, metric)]

    def wait(self, condition: Callable[["Found"], Any]) -> None:
        """Wait until something is true of what MLflow has."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                if condition(self):
                    return
            except (AssertionError, IndexError):  # there is no experiment, or no run yet
                pass
            assert time.monotonic() < until, "nothing happens"
            time.sleep(0.1)


@pytest.fixture
def found(uri: str) -> Callable[[], Found]:
    """Look at MLflow."""
    return lambda: Found(uri)
