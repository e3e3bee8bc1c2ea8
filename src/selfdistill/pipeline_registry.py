"""One pipeline a row, one a stage, one a dataset, and `__default__`.

The order of the stages: preprocess, features, train, sample, evaluate, report, export.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from kedro.pipeline import Pipeline

from selfdistill.config import DatasetConfig, ProjectConfig, RowConfig
from selfdistill.metrics.config import EvaluationConfig, needs_of
from selfdistill.metrics.definitions import weights_of
from selfdistill.pipelines import (
    evaluate,
    export,
    features,
    latents,
    preprocess,
    report,
    sample,
    train,
    verify,
)
from selfdistill.settings import CONFIG_LOADER_ARGS, ProjectConfigLoader

STAGES = ("preprocess", "features", "train", "sample", "evaluate", "report", "export")
_MACHINE = {"params:distributed": "params:distributed"}
_PREFIXES = ("preprocess_", "features_", "latents_", "share_", "verify_", "repair_", "sweep_")


def register_pipelines() -> dict[str, Pipeline]:
    """Build the pipelines of the environment in use.

    Returns:
        `<row>`: from raw images to the row's metrics, its paper's tables and its release;
        `<stage>`: that stage for all lines of the tables; `<study>`: all cases of a study and
        their figure; `sweep_<row>`: what the row's guidance is picked from, of its checkpoint as it
        stands; `<stage>_<dataset>` for preprocess, features and latents, with `share_` in front of
        it for one host's share, with `repair_` for what is damaged; `verify_<dataset>` and
        `repair_<dataset>` for all its sets; `compare`: the metrics of images that a user brings;
        `__default__`: all lines of the tables.
    """
    config = ProjectConfig.from_parameters(_config_loader()["parameters"])
    _check_names(config)
    lines = {name: row for name, row in config.rows.items() if row.study is None}
    rows = {name: _row_stages(name, row, config) for name, row in config.rows.items()}
    sources = {name: _sources(row, config) for name, row in config.rows.items()}
    reports = {paper: _report(paper, lines) for paper in _papers(lines)}

    stages = {stage: Pipeline([]) for stage in STAGES}
    for name in lines:
        for parts in (sources[name], rows[name]):
            for stage, part in parts.items():
                stages[stage] += part
    stages["report"] = sum(reports.values(), Pipeline([]))

    pipelines = {}
    for name, row in config.rows.items():
        pipelines[name] = _joined(sources[name], rows[name])
        if row.study is None:
            pipelines[name] += reports[row.method.root.name]
        if row.sweep is not None:
            pipelines[f"sweep_{name}"] = _sweep(name, row, config)
    for study in sorted({row.study for row in config.rows.values() if row.study}):
        cases = [name for name, row in config.rows.items() if row.study == study]
        pipelines[study] = sum((pipelines[name] for name in cases), Pipeline([]))
        pipelines[study] += report.create_study_pipeline(study, cases)
    pipelines |= stages
    for name, dataset in config.datasets.items():
        pipelines |= _dataset_pipelines(name, dataset, config)
    pipelines["compare"] = evaluate.create_compare_pipeline(_weights(config.compare.evaluation))
    pipelines["__default__"] = sum(stages.values(), Pipeline([]))
    return pipelines


def _check_names(config: ProjectConfig) -> None:
    """Refuse rows and studies whose pipelines would take another one's name.

    Raises:
        ValueError: Naming the key.
    """
    studies = {row.study for row in config.rows.values() if row.study}
    taken = {*STAGES, "compare", "__default__", *config.datasets}
    for name in (*config.rows, *studies):
        if name in taken or name.startswith(_PREFIXES):
            raise ValueError(f"conf: {name} cannot name a row or a study: it names a pipeline")
    if clash := sorted(studies & config.rows.keys()):
        raise ValueError(f"conf: {clash[0]} names both a row and a study; rename one")


def _joined(*parts: dict[str, Pipeline]) -> Pipeline:
    return sum((part for stages in parts for part in stages.values()), Pipeline([]))


def _config_loader() -> ProjectConfigLoader:
    """Return the session's loader; without a session, that of the default environment."""
    if ProjectConfigLoader.latest is not None:
        return ProjectConfigLoader.latest
    conf = Path(__file__).parents[2] / "conf"
    return ProjectConfigLoader(str(conf), env=os.environ.get("KEDRO_ENV"), **CONFIG_LOADER_ARGS)


def _weights(evaluation: EvaluationConfig) -> list[str]:
    return weights_of(needs_of(evaluation.metrics))


def _dataset_pipelines(
    name: str, dataset: DatasetConfig, config: ProjectConfig
) -> dict[str, Pipeline]:
    """Return what can be run of a dataset alone."""
    stages: dict[str, list[_Placed]] = {
        "preprocess": [_Placed(preprocess, name, {"raw": f"raw.{dataset.raw}"}, {})],
        "features": _features_of(name, dataset),
        "latents": [
            _Placed(
                latents,
                f"{name}.{kind}",
                {"images": f"{name}.images"},
                {
                    "params:latents": f"params:{name}.latents.{kind}",
                    "params:vae": f"params:vaes.{one.vae}",
                },
            )
            for kind, one in dataset.latents.items()
        ],
    }
    pipelines = {}
    for stage, parts in stages.items():
        if parts:
            pipelines[f"{stage}_{name}"] = _sum(part.create("create_pipeline") for part in parts)
            for verb in ("share", "repair"):
                pipelines[f"{verb}_{stage}_{name}"] = _sum(
                    part.create(f"create_{verb}_pipeline") for part in parts
                )
    pipelines[f"preprocess_{name}"] = _dataset_stages(name, dataset, config)["preprocess"]
    # All at once: features and latents wait until the images are whole.
    whole = {f"{name}.images": f"{name}.whole_images"}
    pipelines[f"repair_{name}"] = pipelines[f"repair_preprocess_{name}"] + _sum(
        Pipeline(pipelines[f"repair_{stage}_{name}"], inputs=whole)
        for stage in ("features", "latents")
        if f"repair_{stage}_{name}" in pipelines
    )
    sets = ["images", *(["features"] if stages["features"] else [])]
    checks = verify.create_pipeline([*sets, *(f"{kind}.latents" for kind in dataset.latents)])
    pipelines[f"verify_{name}"] = Pipeline(checks, namespace=name, parameters=_MACHINE)
    return pipelines


class _Placed(NamedTuple):
    """A stage that makes shards, and where its pipelines stand."""

    stage: ModuleType
    namespace: str
    inputs: dict[str, str]
    parameters: dict[str, str]

    def create(self, function: str) -> Pipeline:
        """Make the pipeline that one of the stage's functions returns, and put it there."""
        pipeline = getattr(self.stage, function)()
        free = pipeline.inputs()
        inputs = {ours: theirs for ours, theirs in self.inputs.items() if ours in free}
        parameters = {**_MACHINE, **self.parameters}
        return Pipeline(pipeline, inputs=inputs, namespace=self.namespace, parameters=parameters)


def _features_of(name: str, dataset: DatasetConfig) -> list[_Placed]:
    if dataset.teacher is None:
        return []
    teacher = {"params:teacher": f"params:teachers.{dataset.teacher}"}
    return [_Placed(features, name, {}, teacher)]


def _sum(pipelines: Iterable[Pipeline]) -> Pipeline:
    return sum(pipelines, Pipeline([]))


def _dataset_stages(
    name: str, dataset: DatasetConfig, config: ProjectConfig
) -> dict[str, Pipeline]:
    weights = _weights(config.evaluation)
    published = {"published": f"references.{dataset.reference}"} if dataset.reference else {}
    raw = {"raw": f"raw.{dataset.raw}"}
    return {
        "preprocess": Pipeline(
            preprocess.create_pipeline(dataset.generate),
            namespace=name,
            inputs=None if dataset.generate else raw,
            outputs=raw if dataset.generate else None,
            parameters=_MACHINE,
        ),
        "features": _sum(part.create("create_pipeline") for part in _features_of(name, dataset)),
        "evaluate": Pipeline(
            evaluate.create_reference_pipeline(weights, published=bool(published)),
            namespace=name,
            inputs={**published, **_shared_weights(weights)},
            parameters={**_MACHINE, "params:evaluation": "params:evaluation"},
        ),
    }


def _sources(row: RowConfig, config: ProjectConfig) -> dict[str, Pipeline]:
    """Return what has to be made of datasets before and for a row: no more than it needs."""
    stages = _dataset_stages(row.data, config.datasets[row.data], config)
    if not row.method.root.needs_features or row.teacher == "online":
        del stages["features"]
    if not row.samplings and not row.sweep:
        del stages["evaluate"]
    if row.reconstruction is not None and row.reconstruction.data != row.data:
        of = row.reconstruction.data
        stages["preprocess"] += _dataset_stages(of, config.datasets[of], config)["preprocess"]
    return stages


def _shared_weights(weights: list[str]) -> dict[str, str]:
    return {entry: entry for entry in evaluate.weights_inputs(weights).values()}


def _row_stages(name: str, row: RowConfig, config: ProjectConfig) -> dict[str, Pipeline]:
    method = row.method.root
    teacher = row.teacher if method.needs_features else None
    inputs = {"images": f"{row.data}.images"}
    inputs |= {"features": f"{row.data}.features"} if teacher == "cached" else {}
    name_of_teacher = config.datasets[row.data].teacher
    online = {"params:teacher": f"params:teachers.{name_of_teacher}"} if teacher == "online" else {}
    frozen = {f"weights.{file}": f"weights.{file}" for file in method.frozen_weights}
    samplings = [
        _sampling(name, row, sampling, f"samplings.{sampling}", config)
        for sampling in row.samplings
    ]
    if row.reconstruction is not None:
        samplings.append(_reconstruction(name, row.reconstruction.data, config))
    stages = {
        "train": Pipeline(
            train.create_pipeline(method.frozen_weights, teacher=teacher),
            namespace=name,
            inputs={**inputs, **frozen},
            parameters={**_MACHINE, **online},
        ),
        "sample": sum((sampling["sample"] for sampling in samplings), Pipeline([])),
        "evaluate": sum((sampling["evaluate"] for sampling in samplings), Pipeline([])),
    }
    if row.paper is not None:
        stages["export"] = Pipeline(
            export.create_pipeline(name, _measured(row)),
            namespace=name,
            inputs={"images": f"{row.data}.images"},
        )
    return stages


def _sampling(
    name: str, row: RowConfig, sampling: str, key: str, config: ProjectConfig
) -> dict[str, Pipeline]:
    """Return one sampling of a row, a namespace of its own; `key` says where its parameters are."""
    images, reference = ({noun: f"{row.data}.{noun}"} for noun in ("images", "reference"))
    weights = _weights(config.evaluation)
    return {
        "sample": Pipeline(
            sample.create_pipeline(exported=sampling in row.samplings),
            namespace=f"{name}.{sampling}",
            inputs={"checkpoint": f"{name}.checkpoint", **images},
            parameters={**_MACHINE, "params:sample": f"params:{name}.{key}"},
        ),
        "evaluate": Pipeline(
            evaluate.create_pipeline(weights),
            namespace=f"{name}.{sampling}",
            inputs={**images, **reference, **_shared_weights(weights)},
            parameters={
                **_MACHINE,
                "params:evaluation": "params:evaluation",
                "params:repeats": f"params:{name}.{key}.repeats",
            },
        ),
    }


def _reconstruction(name: str, data: str, config: ProjectConfig) -> dict[str, Pipeline]:
    """Return a row's reconstructions of a dataset, measured against its images one by one."""
    weights = _weights(config.reconstruction)
    images, namespace = {"images": f"{data}.images"}, f"{name}.reconstruction"
    reference = {"reference": f"{data}.originals"}  # one for all rows
    evaluation = {**_MACHINE, "params:evaluation": "params:reconstruction"}
    return {
        "sample": Pipeline(
            sample.create_reconstruction_pipeline(),
            namespace=namespace,
            inputs={"checkpoint": f"{name}.checkpoint", **images},
            parameters={**_MACHINE, "params:reconstruction": f"params:{name}.reconstruction"},
        ),
        "evaluate": Pipeline(
            evaluate.create_reference_pipeline(weights),
            namespace=f"{data}.reconstruction",
            inputs={**images, **_shared_weights(weights)},
            outputs=reference,
            parameters=evaluation,
        )
        + Pipeline(
            evaluate.create_pipeline(weights, repeated=False),
            namespace=namespace,
            inputs={**images, **reference, **_shared_weights(weights)},
            parameters=evaluation,
        ),
    }


def _sweep(name: str, row: RowConfig, config: ProjectConfig) -> Pipeline:
    """Return all points of a row's sweep, and the pick."""
    assert row.sweep is not None
    points = [
        _sampling(name, row, point, f"sweep.points.{point}", config) for point in row.sweep.points
    ]
    return _joined(*points) + report.create_sweep_pipeline(name, list(row.sweep.points))


def _measured(row: RowConfig) -> list[str]:
    """Return what of a row is measured, by name: its samplings, and its reconstructions."""
    return [*row.samplings, *(["reconstruction"] if row.reconstruction else [])]


def _papers(lines: dict[str, RowConfig]) -> list[str]:
    return sorted({row.method.root.name for row in lines.values()})


def _report(paper: str, lines: dict[str, RowConfig]) -> Pipeline:
    entries = [
        (name, sampling)
        for name, row in lines.items()
        if row.method.root.name == paper
        for sampling in _measured(row)
    ]
    return report.create_pipeline(paper, entries)
