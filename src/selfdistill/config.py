"""All parameters of the project, checked as a whole: rows, datasets, teachers, the rest."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from selfdistill.base_config import Config
from selfdistill.data.config import LatentsConfig, PreprocessConfig
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.config import MethodConfig
from selfdistill.metrics.config import (
    METRICS,
    CompareConfig,
    EvaluationConfig,
    PublishedMetric,
)
from selfdistill.networks.config import NetworkConfig, TeacherConfig, VAEConfig
from selfdistill.pipelines.sample.config import ReconstructionConfig, SampleConfig
from selfdistill.pipelines.train.config import TrainConfig

_SETTINGS = ("compare", "distributed", "evaluation", "reconstruction", "teachers", "vaes")


class DatasetConfig(Config):
    """A dataset: a key of `datasets.yml` and a Kedro namespace.

    Attributes:
        raw: Name of the raw images, catalog entry `raw.<name>`.
        generate: Embedded images that a node writes there first.
        teacher: Key of `teachers.yml`; None: no features are made of the images.
        reference: Name of a published reference file, catalog entry `references.<name>`, which is
            what the papers' numbers are measured against; None: the images themselves.
        preprocess: Parameters of the preprocess stage.
        latents: Sets of latents of its images, by name.
    """

    raw: str
    generate: Literal["digits"] | None = None
    teacher: str | None = None
    reference: str | None = None
    preprocess: PreprocessConfig
    latents: dict[str, LatentsConfig] = {}


class PaperConfig(Config):
    """The figures we are held to.

    Attributes:
        params: Parameters of the network.
        data: The dataset of the figures. Ours stand beside them only if data, number of samples
            and reference are the same.
        num_samples: Samples of an evaluation.
        reference: Name of the published reference file; None: statistics of the dataset itself.
        samplings: Figures by sampling of the row, then by metric.
    """

    params: int
    data: str
    num_samples: int
    reference: str | None
    samplings: dict[str, dict[PublishedMetric, float]]


class SweepConfig(Config):
    """Samplings of one checkpoint that differ in guidance, and the metric that picks one.

    Attributes:
        metric: Name of the metric.
        points: The samplings by name; all of one number of images, or they could not be compared.
    """

    metric: str
    points: dict[str, SampleConfig] = Field(min_length=2)

    @model_validator(mode="after")
    def _points_compare(self) -> Self:
        if self.metric not in METRICS:
            raise ValueError(f"metric: no metric {self.metric!r}; there are {', '.join(METRICS)}")
        sizes = {name: (point.num_images, point.repeats) for name, point in self.points.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"points: numbers of images and repeats differ: {sizes}")
        return self


class RowConfig(Config):
    """A line of a paper's table, or a case of a study: one run, one Kedro namespace.

    Attributes:
        paper: The paper's figures; None for a case of a study.
        study: Name of the study that the row is a case of; None for a line of a table.
        data: Key of `datasets.yml`.
        teacher: Whether a teacher's features are taken from disk, or made while training: the same
            numbers, for room on the disk or for time on the GPU.
        network: The architecture.
        method: The objective.
        train: The loop's parameters.
        samplings: Samplings of the one checkpoint, by name; a case of a study may have none.
        reconstruction: What the checkpoint encodes and decodes; None: nothing.
        sweep: Samplings that guidance is picked from; None: there is no sweep.
    """

    paper: PaperConfig | None = None
    study: str | None = None
    data: str
    teacher: Literal["cached", "online"] = "cached"
    network: NetworkConfig
    method: MethodConfig
    train: TrainConfig
    samplings: dict[str, SampleConfig] = {}
    reconstruction: ReconstructionConfig | None = None
    sweep: SweepConfig | None = None

    @model_validator(mode="after")
    def _is_a_line_or_a_case(self) -> Self:
        if (self.paper is None) == (self.study is None):
            raise ValueError(
                "a row has either `paper`, as a line of a table, or `study`, as a case"
            )
        if self.paper is None:
            return self
        if not self.samplings:
            raise ValueError("samplings: a line of a table needs one or more")
        for name in self.paper.samplings:
            if name not in self.samplings:
                raise ValueError(
                    f"paper.samplings: the row has no sampling {name!r}; it has "
                    f"{', '.join(self.samplings)}"
                )
        return self


class ProjectConfig(Config):
    """Everything under `parameters`, sorted into what it is.

    A top-level key with `raw` or `preprocess` is a dataset; the settings have fixed names; a key
    that starts with an underscore is a YAML anchor; any other key is a row.
    """

    compare: CompareConfig
    distributed: DistributedConfig
    evaluation: EvaluationConfig
    reconstruction: EvaluationConfig
    teachers: dict[str, TeacherConfig]
    vaes: dict[str, VAEConfig]
    datasets: dict[str, DatasetConfig]
    rows: dict[str, RowConfig]

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Validate Kedro's parameters.

        Raises:
            ValueError: Naming each wrong key or value by its full path.
        """
        missing = [name for name in _SETTINGS if name not in parameters]
        if missing:
            raise ValueError(f"conf: parameters {', '.join(missing)} are missing")
        rest = {
            name: value
            for name, value in parameters.items()
            if name not in _SETTINGS and not name.startswith("_")
        }
        datasets = {name: value for name, value in rest.items() if _is_dataset(value)}
        rows = {name: value for name, value in rest.items() if name not in datasets}
        settings = {name: parameters[name] for name in _SETTINGS}
        try:
            return cls(**settings, datasets=datasets, rows=rows)
        except ValidationError as error:
            raise ValueError(_explain(error)) from None

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        for name, dataset in self.datasets.items():
            if dataset.teacher is not None and dataset.teacher not in self.teachers:
                raise ValueError(
                    f"{name}.teacher: no teacher {dataset.teacher!r}; teachers.yml has "
                    f"{', '.join(self.teachers)}"
                )
            for kind, latents in dataset.latents.items():
                if latents.vae not in self.vaes:
                    raise ValueError(
                        f"{name}.latents.{kind}.vae: no VAE {latents.vae!r}; teachers.yml has "
                        f"{', '.join(self.vaes)}"
                    )
        for name, row in self.rows.items():
            if row.data not in self.datasets:
                raise ValueError(
                    f"{name}.data: no dataset {row.data!r}; datasets.yml has "
                    f"{', '.join(self.datasets)}"
                )
            dataset, network = self.datasets[row.data], row.network.root
            pairs = [
                ("resolution", network.resolution, dataset.preprocess.resolution),
                ("num_classes", network.num_classes, dataset.preprocess.num_classes),
            ]
            for key, ours, theirs in pairs:
                if ours != theirs:
                    raise ValueError(
                        f"{name}.network.{key} is {ours}, but dataset {row.data} has {theirs}"
                    )
            if row.method.root.needs_features:
                self._check_teacher(name, row)
            self._check_samplings(name, row)
        return self

    def _check_teacher(self, name: str, row: RowConfig) -> None:
        """Refuse a teacher whose tokens do not fall on the row's."""
        dataset, network = self.datasets[row.data], row.network.root
        if dataset.teacher is None:
            raise ValueError(
                f"{name}: its objective aligns with a teacher, but {row.data}.teacher is not given"
            )
        teacher = self.teachers[dataset.teacher]
        if network.teacher_dim != teacher.dim:
            raise ValueError(
                f"{name}.network.teacher_dim is {network.teacher_dim}, but teacher "
                f"{dataset.teacher} has tokens of width {teacher.dim}"
            )
        theirs = teacher.grid(dataset.preprocess.resolution)
        if network.grid != theirs:
            raise ValueError(
                f"{name}.network has {network.grid} x {network.grid} tokens, but teacher "
                f"{dataset.teacher} {theirs} x {theirs}: patch_size and the teacher's resolution "
                "must give equal numbers"
            )
        if row.teacher == "cached" and row.train.flip and not teacher.cache.mirrored:
            raise ValueError(
                f"{name}.train.flip shows mirrored images, but features of them are not kept: set "
                f"teachers.{dataset.teacher}.cache.mirrored, or the row's teacher to online"
            )

    def _check_samplings(self, name: str, row: RowConfig) -> None:
        """Refuse what a row's samplings cannot be measured by, or come from."""
        if row.sweep is not None and row.sweep.metric not in self.evaluation.metrics:
            raise ValueError(
                f"{name}.sweep.metric {row.sweep.metric!r} is not among evaluation.metrics: "
                f"{', '.join(self.evaluation.metrics)}"
            )
        names = [*row.samplings, *(row.sweep.points if row.sweep else ())]
        names += ["reconstruction"] if row.reconstruction else []
        if twice := sorted({one for one in names if names.count(one) > 1}):
            raise ValueError(f"{name}: {twice} name two samplings each; rename one")
        method = row.method.root
        if names and not method.trains_decoding:
            raise ValueError(f"{name}: its objective trains no decoder, so {names[0]} is no image")
        if (row.samplings or row.sweep) and not method.trains_sampling:
            raise ValueError(
                f"{name}: its objective trains no velocity, so {names[0]} cannot be sampled"
            )
        if row.reconstruction is None:
            return
        if row.reconstruction.data not in self.datasets:
            raise ValueError(
                f"{name}.reconstruction.data: no dataset {row.reconstruction.data!r}; datasets.yml "
                f"has {', '.join(self.datasets)}"
            )
        resolution = self.datasets[row.reconstruction.data].preprocess.resolution
        if resolution != row.network.root.resolution:
            raise ValueError(
                f"{name}.reconstruction.data {row.reconstruction.data} has images of {resolution} "
                f"pixels, the network takes {row.network.root.resolution}"
            )


def _is_dataset(value: Any) -> bool:
    return isinstance(value, Mapping) and ("raw" in value or "preprocess" in value)


def _explain(error: ValidationError) -> str:
    """Return one line a mistake: its path as written in the YAML, what is wrong, the value."""
    lines = []
    for mistake in error.errors():
        path = ".".join(str(part) for part in mistake["loc"] if part not in ("rows", "datasets"))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "unknown key"
        elif mistake["type"] not in ("missing", "value_error"):
            message += f" (got {mistake['input']!r})"
        lines.append(f"{path}: {message}" if path else message)
    return "conf: " + "\n      ".join(lines)
