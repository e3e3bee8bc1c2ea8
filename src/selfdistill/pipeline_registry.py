"""One pipeline a row, one a stage, one a dataset, and `__default__`.

The order of the stages: preprocess, features, train, sample, evaluate, report.
"""

import os
from pathlib import Path

from kedro.pipeline import Pipeline

from selfdistill.config import DatasetConfig, ProjectConfig, RowConfig
from selfdistill.metrics.config import EvaluationConfig, needs_of
from selfdistill.metrics.definitions import weights_of
from selfdistill.pipelines import evaluate, features, preprocess, report, sample, train
from selfdistill.settings import CONFIG_LOADER_ARGS, ProjectConfigLoader

STAGES = ("preprocess", "features", "train", "sample", "evaluate", "report")


def register_pipelines() -> dict[str, Pipeline]:
    """Build the pipelines of the environment in use.

    Returns:
        `<row>`: from raw images to the row's metrics and its paper's tables;
        `<stage>`: that stage for all rows; `preprocess_<dataset>`; `compare`: the metrics of
        images that a user brings; `__default__`: all rows.
    """
    config = ProjectConfig.from_parameters(_config_loader()["parameters"])
    used = {row.data for row in config.rows.values()}
    stages = {stage: Pipeline([]) for stage in STAGES}
    weights = _weights(config.evaluation)
    datasets = {
        name: _dataset_stages(name, dataset, weights) for name, dataset in config.datasets.items()
    }
    rows = {name: _row_stages(name, row, weights) for name, row in config.rows.items()}
    reports = {paper: _report(paper, config.rows) for paper in _papers(config)}
    for parts in [*(datasets[name] for name in sorted(used)), *rows.values()]:
        for stage, part in parts.items():
            stages[stage] += part
    stages["report"] = sum(reports.values(), Pipeline([]))

    pipelines = {
        name: sum(datasets[row.data].values(), Pipeline([]))
        + sum(rows[name].values(), Pipeline([]))
        + reports[row.method.root.name]
        for name, row in config.rows.items()
    }
    pipelines |= stages
    pipelines |= {f"preprocess_{name}": parts["preprocess"] for name, parts in datasets.items()}
    pipelines["compare"] = evaluate.create_compare_pipeline(_weights(config.compare.evaluation))
    pipelines["__default__"] = sum(stages.values(), Pipeline([]))
    return pipelines


def _config_loader() -> ProjectConfigLoader:
    """Return the session's loader; without a session, that of the default environment."""
    if ProjectConfigLoader.latest is not None:
        return ProjectConfigLoader.latest
    conf = Path(__file__).parents[2] / "conf"
    return ProjectConfigLoader(str(conf), env=os.environ.get("KEDRO_ENV"), **CONFIG_LOADER_ARGS)


def _weights(evaluation: EvaluationConfig) -> list[str]:
    return weights_of(needs_of(evaluation.metrics))


def _dataset_stages(name: str, dataset: DatasetConfig, weights: list[str]) -> dict[str, Pipeline]:
    published = {"published": f"references.{dataset.reference}"} if dataset.reference else {}
    raw = {"raw": f"raw.{dataset.raw}"}
    shared = {"params:distributed": "params:distributed"}
    return {
        "preprocess": Pipeline(
            preprocess.create_pipeline(dataset.generate),
            namespace=name,
            inputs=None if dataset.generate else raw,
            outputs=raw if dataset.generate else None,
            parameters=shared,
        ),
        "features": Pipeline(
            features.create_pipeline(),
            namespace=name,
            parameters={**shared, "params:teacher": f"params:teachers.{dataset.teacher}"},
        ),
        "evaluate": Pipeline(
            evaluate.create_reference_pipeline(weights, published=bool(published)),
            namespace=name,
            inputs={**published, **_shared_weights(weights)},
            parameters={**shared, "params:evaluation": "params:evaluation"},
        ),
    }


def _shared_weights(weights: list[str]) -> dict[str, str]:
    return {entry: entry for entry in evaluate.weights_inputs(weights).values()}


def _row_stages(name: str, row: RowConfig, weights: list[str]) -> dict[str, Pipeline]:
    images, features_, reference = (
        {noun: f"{row.data}.{noun}"} for noun in ("images", "features", "reference")
    )
    shared = {"params:distributed": "params:distributed"}
    checkpoint = {"checkpoint": f"{name}.checkpoint"}
    samplings = {sampling: f"{name}.{sampling}" for sampling in row.samplings}
    return {
        "train": Pipeline(
            train.create_pipeline(),
            namespace=name,
            inputs={**images, **features_},
            parameters=shared,
        ),
        "sample": sum(
            (
                Pipeline(
                    sample.create_pipeline(),
                    namespace=namespace,
                    inputs={**checkpoint, **images},
                    parameters={**shared, "params:sample": f"params:{name}.samplings.{sampling}"},
                )
                for sampling, namespace in samplings.items()
            ),
            Pipeline([]),
        ),
        "evaluate": sum(
            (
                Pipeline(
                    evaluate.create_pipeline(weights),
                    namespace=namespace,
                    inputs={**images, **reference, **_shared_weights(weights)},
                    parameters={
                        **shared,
                        "params:evaluation": "params:evaluation",
                        "params:repeats": f"params:{name}.samplings.{sampling}.repeats",
                    },
                )
                for sampling, namespace in samplings.items()
            ),
            Pipeline([]),
        ),
    }


def _papers(config: ProjectConfig) -> list[str]:
    return sorted({row.method.root.name for row in config.rows.values()})


def _report(paper: str, rows: dict[str, RowConfig]) -> Pipeline:
    entries = [
        (name, sampling)
        for name, row in rows.items()
        if row.method.root.name == paper
        for sampling in row.samplings
    ]
    return report.create_pipeline(paper, entries)
