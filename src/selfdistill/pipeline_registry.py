"""One pipeline a row, one a stage, one a dataset, and `__default__`.

The order of the stages: preprocess, features, latents, train, sample, evaluate, report, export.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from kedro.pipeline import Node, Pipeline

from selfdistill.config import DatasetConfig, ProjectConfig
from selfdistill.config_loader import ProjectConfigLoader
from selfdistill.metrics.config import EvaluationConfig, needs_of
from selfdistill.metrics.definitions import weights_of
from selfdistill.pipelines import (
    evaluate,
    export,
    features,
    latents,
    plan,
    preprocess,
    report,
    sample,
    tradeoff,
    train,
    verify,
)
from selfdistill.row_config import RowConfig
from selfdistill.settings import CONFIG_LOADER_ARGS

STAGES = ("preprocess", "features", "latents", "train", "sample", "evaluate", "report", "export")
_MACHINE = {"params:distributed": "params:distributed"}
_PREFIXES = ("preprocess_", "features_", "latents_", "share_", "verify_", "repair_", "sweep_")


class Pipelines(Mapping[str, Pipeline]):
    """Pipelines by name, each built when it is first asked for: a run pays for its own alone."""

    def __init__(self, builders: Mapping[str, Callable[[], Pipeline]]) -> None:
        self._builders = {name: cache(build) for name, build in builders.items()}

    def __getitem__(self, name: str) -> Pipeline:
        """Return a pipeline."""
        return self._builders[name]()

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._builders)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._builders)


def register_pipelines() -> Pipelines:
    """Register the pipelines of the environment in use.

    Returns:
        `<row>`: from raw images, and from the checkpoint of the row that it starts from, to its
        metrics, its paper's tables and its release; `<stage>`: that stage for all lines of the
        tables; `<study>`: all cases of a study and its figures; `sweep_<row>`: what the row's
        guidance is picked from, of its checkpoint as it stands; `<stage>_<dataset>` for preprocess,
        features and latents, with `share_` in front of it for one host's share, with `repair_` for
        what is damaged; `verify_<dataset>` and `repair_<dataset>` for all its sets; `<dataset>`:
        all that is made of it; `<figure>`: a figure of what has been measured; `<tradeoff>`: rows
        that follow from each other, and what each costs and gives; `compare`: the
        metrics of images that a user brings; `plan`: what rows will cost; `__default__`: all lines
        of the tables.
    """
    config = ProjectConfig.from_parameters(_config_loader()["parameters"])
    _check_names(config)
    lines = {name: row for name, row in config.rows.items() if row.study is None}

    @cache
    def made(name: str) -> dict[str, Pipeline]:
        return _row_stages(name, config.rows[name], config)

    @cache
    def sources(name: str) -> dict[str, Pipeline]:
        return _sources(config.rows[name], config)

    @cache
    def reports(paper: str) -> Pipeline:
        return _report(paper, lines)

    @cache
    def of_row(name: str) -> Pipeline:
        paper = config.rows[name].paper_name
        parts = [*sources(name).values(), *made(name).values()]
        return _sum(parts if paper is None else [*parts, reports(paper)])

    @cache
    def of_stage(stage: str) -> Pipeline:
        if stage == "report":
            return _sum(map(reports, _papers(lines)))
        parts = [parts for name in lines for parts in (sources(name), made(name))]
        return _sum(part[stage] for part in parts if stage in part)

    def of_figure(name: str) -> Pipeline:
        figure = config.figures[name]
        return report.create_figure_pipeline(name, figure.samplings, figure.rows)

    def of_tradeoff(name: str) -> Pipeline:
        tradeoff = config.tradeoffs[name]
        return _sum([*map(of_row, tradeoff.rows), _tradeoff(name, config)])

    def of_study(study: str) -> Pipeline:
        cases = [name for name, row in config.rows.items() if row.study == study]
        own = [name for name, one in config.figures.items() if not {*cases}.isdisjoint(one.rows)]
        drawn = [*map(of_figure, own)] or [report.create_study_pipeline(study, cases)]
        return _sum([*map(of_row, cases), *drawn])

    def all_of(dataset: str) -> Pipeline:
        own = _dataset_pipelines(dataset, config.datasets[dataset], config)
        alone = (f"{stage}_{dataset}" for stage in ("preprocess", "features", "latents"))
        parts = [*(own[name]() for name in alone if name in own), *map(of_row, config.rows)]
        nodes = [node for part in parts for node in part.nodes if _owner(node) == dataset]
        return _sum([Pipeline([node]) for node in dict.fromkeys(nodes)])

    builders: dict[str, Callable[[], Pipeline]] = {}
    for name, row in config.rows.items():
        builders[name] = partial(of_row, name)
        if row.sweep is not None:
            builders[f"sweep_{name}"] = partial(_sweep, name, row, config)
    for study in sorted({row.study for row in config.rows.values() if row.study}):
        builders[study] = partial(of_study, study)
    for name in config.figures:
        builders[name] = partial(of_figure, name)
    for name in config.tradeoffs:
        builders[name] = partial(of_tradeoff, name)
    builders |= {stage: partial(of_stage, stage) for stage in STAGES}
    for name, dataset in config.datasets.items():
        builders |= _dataset_pipelines(name, dataset, config)
        builders[name] = partial(all_of, name)
    builders["plan"] = partial(_plan, config)
    builders["compare"] = partial(
        evaluate.create_compare_pipeline, _weights(config.compare.evaluation)
    )
    builders["__default__"] = lambda: _sum(map(of_stage, STAGES))
    return Pipelines(builders)


def _check_names(config: ProjectConfig) -> None:
    """Refuse rows, studies, figures and tradeoffs whose pipelines would take another one's name.

    Raises:
        ValueError: Naming the key.
    """
    studies = {row.study for row in config.rows.values() if row.study}
    taken = {*STAGES, "compare", "plan", "__default__", *config.datasets}
    for name in (*config.rows, *studies, *config.figures, *config.tradeoffs):
        if name in taken or name.startswith(_PREFIXES):
            raise ValueError(
                f"conf: {name} cannot name a row, study, figure or tradeoff: it names a pipeline"
            )
    drawn = {*config.figures, *config.tradeoffs}
    clash = sorted(drawn & {*config.rows, *studies} or config.figures.keys() & config.tradeoffs)
    if clash:
        raise ValueError(
            f"conf: {clash[0]} names a figure or tradeoff and something else; rename one"
        )
    if clash := sorted(studies & config.rows.keys()):
        raise ValueError(f"conf: {clash[0]} names both a row and a study; rename one")


def _owner(node: Node) -> str:
    return str(node.namespace).partition(".")[0]


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
) -> dict[str, Callable[[], Pipeline]]:
    """Return what can be run of a dataset alone."""
    stages: dict[str, list[_Placed]] = {
        "preprocess": [_Placed(preprocess, name, {"raw": f"raw.{dataset.raw}"}, {})],
        "features": _features_of(name, dataset),
        "latents": [_latents_of(name, dataset, kind) for kind in dataset.latents],
    }

    def of(stage: str, function: str) -> Pipeline:
        return _sum(part.create(function) for part in stages[stage])

    def repair() -> Pipeline:
        # All at once: features and latents wait until the images are whole.
        whole = {f"{name}.images": f"{name}.whole_images"}
        images, *others = (of(s, "create_repair_pipeline") for s, parts in stages.items() if parts)
        return _sum([images, *(Pipeline(other, inputs=whole) for other in others)])

    def check() -> Pipeline:
        sets = ["images", *(["features"] if stages["features"] else [])]
        checks = verify.create_pipeline([*sets, *(f"{kind}.latents" for kind in dataset.latents)])
        return Pipeline(checks, namespace=name, parameters=_MACHINE)

    pipelines: dict[str, Callable[[], Pipeline]] = {}
    for stage, parts in stages.items():
        if parts:
            pipelines[f"{stage}_{name}"] = partial(of, stage, "create_pipeline")
            for verb in ("share", "repair"):
                function = f"create_{verb}_pipeline"
                pipelines[f"{verb}_{stage}_{name}"] = partial(of, stage, function)
    pipelines[f"preprocess_{name}"] = lambda: _dataset_stages(name, dataset, config)["preprocess"]
    pipelines[f"repair_{name}"] = repair
    pipelines[f"verify_{name}"] = check
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


def _latents_of(name: str, dataset: DatasetConfig, kind: str) -> _Placed:
    parameters = {
        "params:latents": f"params:{name}.latents.{kind}",
        "params:vae": f"params:vaes.{dataset.latents[kind].vae}",
    }
    return _Placed(latents, f"{name}.{kind}", {"images": f"{name}.images"}, parameters)


def _sum(pipelines: Iterable[Pipeline]) -> Pipeline:
    """Join pipelines at once; adding them up takes time with the square of their number."""
    return Pipeline(dict.fromkeys(node for pipeline in pipelines for node in pipeline.nodes))


def _dataset_stages(
    name: str, dataset: DatasetConfig, config: ProjectConfig
) -> dict[str, Pipeline]:
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
    }


def _reference_of(data: str, evaluation: str | None, config: ProjectConfig) -> Pipeline:
    """Return what a dataset's samples are held against, in an evaluation's own namespace."""
    weights = _weights(config.evaluations[evaluation] if evaluation else config.evaluation)
    files = config.datasets[data].published(evaluation)
    published = {
        ours: f"references.{file}"
        for ours, file in zip(evaluate.published_inputs(len(files)), files, strict=True)
    }
    return Pipeline(
        evaluate.create_reference_pipeline(weights, num_published=len(files)),
        namespace=f"{data}.{evaluation}" if evaluation else data,
        inputs={"images": f"{data}.images", **published, **_shared_weights(weights)},
        parameters={**_MACHINE, "params:evaluation": _evaluation(evaluation)},
    )


def _reference_entry(data: str, row: RowConfig) -> str:
    """Return the catalog entry of what a row's samples of a dataset are held against."""
    return f"{data}.{row.evaluation}.reference" if row.evaluation else f"{data}.reference"


def _evaluation(name: str | None) -> str:
    """Return the parameter that says how an evaluation measures."""
    return f"params:evaluations.{name}" if name else "params:evaluation"


def _sources(row: RowConfig, config: ProjectConfig) -> dict[str, Pipeline]:
    """Return what has to be made of datasets before and for a row: no more than it needs."""
    dataset = config.datasets[row.data]
    stages = _dataset_stages(row.data, dataset, config)
    if not row.method.root.needs_features or row.teacher == "online":
        del stages["features"]
    if row.latents is not None and row.train is not None:
        stages["latents"] = _latents_of(row.data, dataset, row.latents).create("create_pipeline")
    if row.samplings or row.sweep:
        measured = [
            _dataset_stages(data, config.datasets[data], config) for data in row.sampled_data
        ]
        stages["evaluate"] = _sum(
            _reference_of(data, row.evaluation, config) for data in row.sampled_data
        )
        stages["preprocess"] = _sum(one["preprocess"] for one in (stages, *measured))
    if row.reconstruction is not None and row.reconstruction.data != row.data:
        of = row.reconstruction.data
        stages["preprocess"] += _dataset_stages(of, config.datasets[of], config)["preprocess"]
    return stages


def _shared_weights(weights: list[str]) -> dict[str, str]:
    return {entry: entry for entry in evaluate.weights_inputs(weights).values()}


def _row_stages(name: str, row: RowConfig, config: ProjectConfig) -> dict[str, Pipeline]:
    method = row.method.root
    teacher = row.teacher if method.needs_features else None
    source = "images" if row.latents is None else f"{row.latents}.latents"
    inputs = {"images": f"{row.data}.{source}"} if row.train is not None else {}
    inputs |= {"features": f"{row.data}.features"} if teacher == "cached" else {}
    inputs |= {} if row.start is None else {"start": row.start.entry}
    taught_by = row.start.teacher if row.start else None
    inputs |= {"taught_by": f"{taught_by}.checkpoint"} if taught_by else {}
    name_of_teacher = config.datasets[row.data].teacher
    online = {"params:teacher": f"params:teachers.{name_of_teacher}"} if teacher == "online" else {}
    frozen = {f"weights.{file}": f"weights.{file}" for file in method.frozen_weights}
    samplings = [
        _sampling(name, row, sampling, f"samplings.{sampling}", config)
        for sampling in row.samplings
    ]
    if row.reconstruction is not None:
        samplings.append(_reconstruction(name, row.reconstruction.data, config))
    network = {"params:network": f"params:{config.owner_of_network(name)}.network"}
    selecting = _selecting(name, row, config)
    if row.train is None:
        made = Pipeline(
            train.create_adopting_pipeline(), namespace=name, inputs=inputs, parameters=network
        )
    else:
        made = Pipeline(
            train.create_pipeline(
                method.frozen_weights,
                teacher=teacher,
                starts=row.start is not None,
                taught=taught_by is not None,
                selecting=selecting.arguments,
            ),
            namespace=name,
            inputs={**inputs, **frozen, **selecting.inputs},
            parameters={**_MACHINE, **online, **network, **selecting.parameters},
        )
    stages = {
        "train": made,
        "sample": _sum(sampling["sample"] for sampling in samplings),
        "evaluate": _sum(sampling["evaluate"] for sampling in samplings),
    }
    if row.paper is not None:
        stages["export"] = Pipeline(
            export.create_pipeline(
                name,
                _measured(row),
                decoded=row.latents is not None,
            ),
            namespace=name,
            inputs={"images": f"{row.data}.images"},
            parameters=_decoder(row, config),
        )
    return stages


class _Selecting(NamedTuple):
    """What a training takes beside to select its best state; nothing, where it does not.

    Attributes:
        arguments: Of the node, and what they are called in the stage.
        inputs: What stands in the catalog for these.
        parameters: What stands in conf for these.
    """

    arguments: dict[str, str]
    inputs: dict[str, str]
    parameters: dict[str, str]


def _selecting(name: str, row: RowConfig, config: ProjectConfig) -> _Selecting:
    if row.selection is None:
        return _Selecting({}, {}, {})
    weights = evaluate.weights_inputs(weights_of(needs_of([row.selection.metric])))
    parameters = {
        "params:sampling": f"params:{name}.samplings.{row.selection.sampling}",
        **_decoder(row, config),
    }
    if "profile" in config.evaluation_of(row).model_fields_set:
        parameters["params:profile"] = f"{_evaluation(row.evaluation)}.profile"
    arguments = {key.removeprefix("params:"): key for key in ("params:selection", *parameters)}
    return _Selecting(
        {**arguments, "reference": "reference", **weights},
        {"reference": _reference_entry(row.data, row), **_shared_weights(list(weights))},
        parameters,
    )


def _sampling(
    name: str, row: RowConfig, sampling: str, key: str, config: ProjectConfig
) -> dict[str, Pipeline]:
    """Return one sampling of a row, a namespace of its own; `key` says where its parameters are."""
    points = row.samplings if sampling in row.samplings else row.sweep.points  # type: ignore[union-attr]
    data, guide = points[sampling].data or row.data, points[sampling].guide
    images, reference = {"images": f"{data}.images"}, {"reference": _reference_entry(data, row)}
    weights = _weights(config.evaluation_of(row))
    return {
        "sample": Pipeline(
            sample.create_pipeline(
                exported=sampling in row.samplings,
                decoded=row.latents is not None,
                guided=guide is not None,
            ),
            namespace=f"{name}.{sampling}",
            inputs={
                "checkpoint": f"{name}.checkpoint",
                **images,
                **({"guide": guide.entry} if guide else {}),
            },
            parameters={
                **_MACHINE,
                **_decoder(row, config),
                "params:sample": f"params:{name}.{key}",
            },
        ),
        "evaluate": Pipeline(
            evaluate.create_pipeline(weights),
            namespace=f"{name}.{sampling}",
            inputs={**images, **reference, **_shared_weights(weights)},
            parameters={
                **_MACHINE,
                "params:evaluation": _evaluation(row.evaluation),
                "params:repeats": f"params:{name}.{key}.repeats",
            },
        ),
    }


def _decoder(row: RowConfig, config: ProjectConfig) -> dict[str, str]:
    """Return the parameters of what decodes a row's latents."""
    if row.latents is None:
        return {}
    of = config.datasets[row.data].latents[row.latents]
    return {
        "params:latents": f"params:{row.data}.latents.{row.latents}",
        "params:vae": f"params:vaes.{of.vae}",
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
    made = [part for point in points for part in point.values()]
    return _sum([*made, report.create_sweep_pipeline(name, list(row.sweep.points))])


def _tradeoff(name: str, config: ProjectConfig) -> Pipeline:
    """Return what times the samplings of a tradeoff, and its table."""
    return tradeoff.create_pipeline(name, config.tradeoffs[name].samplings)


def _plan(config: ProjectConfig) -> Pipeline:
    """Return the plans of the rows that `plan.rows` names, and of their datasets."""
    rows = config.planned_rows()
    decoded = [row.reconstruction.data for row in rows.values() if row.reconstruction]
    used = [data for row in rows.values() for data in (row.data, *row.sampled_data)]
    datasets = list(dict.fromkeys([*used, *decoded]))
    shared = {"params:plan": "params:plan"}
    parts = []
    for name in datasets:
        dataset = config.datasets[name]
        parameters = {**shared, "params:vaes": "params:vaes"}
        cached = any(
            row.data == name and row.method.root.needs_features and row.teacher == "cached"
            for row in rows.values()
        )
        if cached:
            parameters["params:teacher"] = f"params:teachers.{dataset.teacher}"
        part = plan.create_dataset_pipeline(latents=bool(dataset.latents), teacher=cached)
        parts.append(Pipeline(part, namespace=name, parameters=parameters))
    for name, row in rows.items():
        online = row.method.root.needs_features and row.teacher == "online"
        parameters = dict(shared)
        if online:
            parameters["params:teacher"] = f"params:teachers.{config.datasets[row.data].teacher}"
        of = row.reconstruction.data if row.reconstruction else None
        decoder = _decoder(row, config)
        parameters |= {key: of for key, of in decoder.items() if key == "params:vae"}
        images = f"params:{row.data}.preprocess"
        parameters[images] = images
        parameters["params:network"] = f"params:{config.owner_of_network(name)}.network"
        asked = (one.guide.row for one in row.samplings.values() if one.guide)
        guides = {one: f"params:{config.owner_of_network(one)}.network" for one in asked if one}
        parameters |= {f"params:{one}.network": owner for one, owner in guides.items()}
        part = plan.create_row_pipeline(
            data=row.data,
            trained=row.train is not None,
            samplings=bool(row.samplings),
            online_teacher=online,
            selecting=row.selection is not None,
            reconstructed=of,
            decoded=bool(decoder),
            guides=list(guides),
        )
        inputs = {f"{of}.dataset_plan": f"{of}.dataset_plan"} if of else {}
        parts.append(Pipeline(part, namespace=name, inputs=inputs, parameters=parameters))
    return _sum([*parts, plan.create_table_pipeline(list(rows), datasets)])


def _measured(row: RowConfig) -> list[str]:
    """Return what of a row is measured, by name: its samplings, and its reconstructions."""
    return [*row.samplings, *(["reconstruction"] if row.reconstruction else [])]


def _papers(lines: dict[str, RowConfig]) -> list[str]:
    return sorted({str(row.paper_name) for row in lines.values()})


def _report(paper: str, lines: dict[str, RowConfig]) -> Pipeline:
    entries = [
        (name, sampling)
        for name, row in lines.items()
        if row.paper_name == paper
        for sampling in _measured(row)
    ]
    trained = [name for name, row in lines.items() if row.train is not None]
    selecting = [name for name in trained if lines[name].selection is not None]
    return report.create_pipeline(paper, entries, trained, selecting)
