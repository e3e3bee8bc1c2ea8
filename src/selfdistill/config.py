"""All parameters of the project, checked as a whole: rows, datasets, teachers, the rest."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from selfdistill.base_config import Config
from selfdistill.data.config import LatentsConfig, PreprocessConfig
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.sid_config import SiDConfig
from selfdistill.metrics.config import (
    CompareConfig,
    EvaluationConfig,
)
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.edm_config import DenoiserConfig
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.networks.text_unet_config import TextUNetConfig
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.plan.config import PlanConfig
from selfdistill.pipelines.report.figure_config import FigureConfig
from selfdistill.pipelines.tradeoff.config import TradeoffConfig
from selfdistill.row_config import RowConfig, process_of

_SETTINGS = (
    "compare", "distributed", "evaluation", "figures", "plan", "reconstruction", "teachers",
    "vaes",
)  # fmt: skip
_SIZES = ("latent_size", "latent_channels", "num_classes")
_OPTIONAL = ("evaluations", "tradeoffs")
_ONE_OF_SEVERAL = ("method", "network", "optimizer", "tap", "target")


class DatasetConfig(Config):
    """A dataset: a key of `datasets.yml` and a Kedro namespace.

    Attributes:
        raw: Name of the raw images, catalog entry `raw.<name>`.
        generate: Embedded images that a node writes there first.
        teacher: Key of `teachers.yml`; None: no features are made of the images.
        reference: Name of a published reference file, catalog entry `references.<name>`, which is
            what the papers' numbers are measured against, or names of several, each believed for
            what those before it do not know; None: the images themselves.
        references: By key of `evaluations`, where such an evaluation has others.
        preprocess: Parameters of the preprocess stage.
        latents: Sets of latents of its images, by name.
    """

    raw: str
    generate: Literal["digits"] | None = None
    teacher: str | None = None
    reference: str | tuple[str, ...] | None = None
    references: dict[str, str | tuple[str, ...] | None] = {}
    preprocess: PreprocessConfig
    latents: dict[str, LatentsConfig] = {}

    def published(self, evaluation: str | None) -> tuple[str, ...]:
        """Return the names of the reference files of an evaluation, a key of `evaluations`."""
        named = self.references.get(evaluation or "", self.reference)
        return (named,) if isinstance(named, str) else named or ()


class ProjectConfig(Config):
    """Everything under `parameters`, sorted into what it is.

    A top-level key with `raw` or `preprocess` is a dataset; the settings have fixed names; a key
    that starts with an underscore is a YAML anchor; any other key is a row.
    """

    compare: CompareConfig
    distributed: DistributedConfig
    evaluation: EvaluationConfig
    evaluations: dict[str, EvaluationConfig] = {}
    figures: dict[str, FigureConfig]
    plan: PlanConfig
    reconstruction: EvaluationConfig
    teachers: dict[str, TeacherConfig]
    tradeoffs: dict[str, TradeoffConfig] = {}
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
            if name not in (*_SETTINGS, *_OPTIONAL) and not name.startswith("_")
        }
        datasets = {name: value for name, value in rest.items() if _is_dataset(value)}
        rows = {name: value for name, value in rest.items() if name not in datasets}
        rows = {name: _with_network(name, rows) for name in rows}
        settings = {
            name: parameters[name] for name in (*_SETTINGS, *_OPTIONAL) if name in parameters
        }
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
            for evaluation in dataset.references:
                self._check_evaluation(f"{name}.references", evaluation)
            for kind, latents in dataset.latents.items():
                if latents.vae not in self.vaes:
                    raise ValueError(
                        f"{name}.latents.{kind}.vae: no VAE {latents.vae!r}; teachers.yml has "
                        f"{', '.join(self.vaes)}"
                    )
        self.planned_rows()
        for name, row in self.rows.items():
            if row.data not in self.datasets:
                raise ValueError(
                    f"{name}.data: no dataset {row.data!r}; datasets.yml has "
                    f"{', '.join(self.datasets)}"
                )
            if row.evaluation is not None:
                self._check_evaluation(f"{name}.evaluation", row.evaluation)
            self._check_start(name, row)
            self._check_network(name, row)
            self._check_sampled_data(name, row)
            self._check_guides(name, row)
            if row.method.root.needs_features:
                self._check_teacher(name, row)
            self._check_samplings(name, row)
        self._check_figures()
        return self

    def evaluation_of(self, row: RowConfig) -> EvaluationConfig:
        """Return what a row's samplings are measured by, and how."""
        return self.evaluation if row.evaluation is None else self.evaluations[row.evaluation]

    def _check_evaluation(self, key: str, name: str) -> None:
        if name not in self.evaluations:
            raise ValueError(
                f"{key}: no evaluation {name!r}; evaluation.yml has under evaluations "
                f"{', '.join(self.evaluations) or 'none'}"
            )
        if name == "reconstruction":
            raise ValueError("evaluations.reconstruction: the name is taken; rename it")

    def _check_figures(self) -> None:
        """Refuse figures and tables of what nobody samples or measures."""
        for name, figure in self.figures.items():
            self._check_named(f"figures.{name}", figure.samplings)
            for one in figure.samplings:
                owner = self.rows[one.partition(".")[0]]
                self._check_metric(f"figures.{name}.metric", figure.metric, owner)
        for name, tradeoff in self.tradeoffs.items():
            self._check_named(f"tradeoffs.{name}", tradeoff.samplings)
            for one in tradeoff.samplings:
                row, _, sampling = one.partition(".")
                reads = isinstance(self.rows[row].network.root, TextUNetConfig)
                if reads or self.rows[row].samplings[sampling].guide is not None:
                    raise ValueError(
                        f"tradeoffs.{name}: {one} needs more than a network, which is not timed"
                    )

    def _check_named(self, key: str, samplings: Iterable[str]) -> None:
        for one in samplings:
            row, _, sampling = one.partition(".")
            if row not in self.rows or sampling not in self.rows[row].samplings:
                raise ValueError(f"{key}: there is no sampling {one!r}")

    def _check_metric(self, key: str, metric: str, row: RowConfig) -> None:
        """Refuse a metric by which a row is not measured."""
        metrics = self.evaluation_of(row).metrics
        if metric not in metrics:
            place = "evaluation" if row.evaluation is None else f"evaluations.{row.evaluation}"
            raise ValueError(f"{key} {metric!r} is not among {place}.metrics: {', '.join(metrics)}")

    def _check_network(self, name: str, row: RowConfig) -> None:
        """Refuse a network that does not fit the dataset."""
        dataset, network = self.datasets[row.data], row.network.root
        pairs = []
        if not isinstance(network, TextUNetConfig):  # to which a class is a text
            pairs.append(("num_classes", network.num_classes, dataset.preprocess.num_classes))
        if isinstance(network, DSDViTConfig):
            pairs.append(("resolution", network.resolution, dataset.preprocess.resolution))
        elif row.latents is None:
            pairs.append(("latent_size", network.latent_size, dataset.preprocess.resolution))
            pairs.append(("latent_channels", network.latent_channels, 3))
        elif row.latents not in dataset.latents:
            raise ValueError(
                f"{name}.latents: {row.data} has no set {row.latents!r}; datasets.yml has "
                f"{', '.join(dataset.latents) or 'none'}"
            )
        else:
            latents = dataset.latents[row.latents]
            vae = self.vaes[latents.vae]
            size = dataset.preprocess.resolution // vae.downsampling
            pairs.append(("latent_size", network.latent_size, size))
            pairs.append(("latent_channels", network.latent_channels, vae.latent_channels))
            if row.train is not None and row.train.flip and not latents.mirrored:
                raise ValueError(
                    f"{name}.train.flip shows mirrored images, but latents of them are not kept: "
                    f"set {row.data}.latents.{row.latents}.mirrored"
                )
        for key, ours, theirs in pairs:
            if ours != theirs:
                raise ValueError(
                    f"{name}.network.{key} is {ours}, but dataset {row.data} has {theirs}"
                )

    def _check_sampled_data(self, name: str, row: RowConfig) -> None:
        """Refuse to sample classes, or sizes, that the network does not know."""
        for data in row.sampled_data:
            if data not in self.datasets:
                raise ValueError(
                    f"{name}.samplings: no dataset {data!r}; datasets.yml has "
                    f"{', '.join(self.datasets)}"
                )
            ours, theirs = (self.datasets[one].preprocess for one in (row.data, data))
            of_text = isinstance(row.network.root, TextUNetConfig)
            for key in ("resolution", *(() if of_text else ("num_classes",))):
                if getattr(ours, key) != getattr(theirs, key):
                    raise ValueError(
                        f"{name}.samplings: {data} has {key} {getattr(theirs, key)}, but "
                        f"{row.data} {getattr(ours, key)}"
                    )

    def _check_guides(self, name: str, row: RowConfig) -> None:
        """Refuse to be guided by a network that does not fit."""
        points = row.sweep.points if row.sweep else {}
        for sampling, one in {**row.samplings, **points}.items():
            if one.guide is None:
                if one.guidance != 1:
                    self._check_unconditional(name, f"{name}.samplings.{sampling}", row.network)
                continue
            key = f"{name}.samplings.{sampling}.guide"
            if one.guide.row is not None and (
                one.guide.row not in self.rows or one.guide.row == name
            ):
                raise ValueError(f"conf: {key}.row: no other row {one.guide.row!r}")
            guide = one.guide.network or self.rows[str(one.guide.row)].network
            ours, theirs = (
                (process_of(part), *(getattr(part, size, None) for size in _SIZES))
                for part in (row.network.root, guide.root)
            )
            if ours != theirs or isinstance(row.network.root, DSDViTConfig):
                raise ValueError(
                    f"{key} is a {guide.root.name} of other latents or noise than the row's network"
                )
            if getattr(guide.root, "conditional", False):
                self._check_unconditional(one.guide.row, key, guide)

    def _check_unconditional(self, name: str | None, key: str, network: NetworkConfig) -> None:
        """Refuse to ask a network of noise levels without class that never was so in training.

        EDM's were not, and answer something.

        Args:
            name: Its row; None: it is published weights, of which a row would say it.
            key: What asks it.
            network: Its architecture.
        """
        if not isinstance(network.root, DenoiserConfig):
            return
        if not network.root.conditional:
            raise ValueError(
                f"{key}.guidance: network {network.root.name} knows no classes; set it 1"
            )
        rows = set() if name is None else self._lineage_of(name)
        if not any(getattr(self.rows[one].method.root, "class_dropout", 0) for one in rows):
            raise ValueError(
                f"{key}: network {network.root.name} has not learned to do without classes "
                "(method.class_dropout is 0, also where published weights are as they are): let a "
                "network without classes guide, or set guidance to 1"
            )

    def _check_start(self, name: str, row: RowConfig) -> None:
        """Refuse a start, or a teacher, that is of another network."""
        if row.start is None:
            return
        roles = {"row": "starts", "teacher": "learns"}
        for key, verb in roles.items():
            other = getattr(row.start, key)
            if other is None:
                continue
            if other not in self.rows or other == name:
                raise ValueError(f"conf: {name}.start.{key}: no other row {other!r}")
            before = self.rows[other]
            if getattr(before.method.root, "only_step", None) is not None:
                raise ValueError(f"{name}.start.{key}: {other} tunes one step; nothing {verb} so")
            if isinstance(before.method.root, SiDConfig):
                distils = isinstance(row.method.root, SiDConfig)
                if key == "teacher" or (distils and row.start.teacher is None):
                    raise ValueError(
                        f"{name}.start.{key}: {other} is a generator of one step, which teaches "
                        "nobody: name the row that it learned from as start.teacher"
                    )
                if not distils or isinstance(before.network.root, DSDViTConfig):
                    raise ValueError(
                        f"{name}.start.{key}: {other} is a generator of one step, and this row "
                        "cannot start as one"
                    )
            parts = ("network", "latents", *(("data",) if row.method.root.takes_teacher else ()))
            for part in parts:
                if getattr(before, part) != getattr(row, part):
                    raise ValueError(
                        f"{name}.{part} differs from that of {other}, which it {verb} from"
                    )
        self._check_lineage(name, row)

    def _check_lineage(self, name: str, row: RowConfig) -> None:
        """Refuse a DSD teacher of other latents, or whose clean head was left behind."""
        assert row.start is not None
        start, teacher = row.start.row, row.start.teacher
        of_dsd = isinstance(row.network.root, DSDViTConfig)
        if of_dsd and start and teacher and self._vit_of(start) != self._vit_of(teacher):
            raise ValueError(
                f"{name}.start.teacher: the latents of {teacher} are those of another ViT than "
                f"{start} has"
            )
        taught_by = teacher or start
        if getattr(row.method.root, "teacher_head", None) != "clean" or taught_by is None:
            return
        trained = (one for one in self._ancestry_of(taught_by) if self.rows[one].train is not None)
        last = next(trained, None)
        if last is not None and (method := self.rows[last].method.root.name) != "dsd":
            raise ValueError(
                f"{name}.method.teacher_head clean: {last} was tuned by method {method}, which "
                "leaves that head behind; take velocity, or the row before as start.teacher"
            )

    def _vit_of(self, name: str) -> str:
        """Return the row, or the published weights, that a row has its DSD ViT from."""
        owner = self.owner_of_network(name)
        start = self.rows[owner].start
        return owner if start is None or start.weights is None else f"weights.{start.weights}"

    def _lineage_of(self, name: str) -> set[str]:
        """Return a row and all rows that it descends from, by start or by teacher."""
        found: set[str] = {name}
        waiting = [name]
        while waiting:
            start = self.rows[waiting.pop()].start
            parents = (start.row, start.teacher) if start else ()
            new = {one for one in parents if one in self.rows} - found
            found |= new
            waiting += new
        return found

    def _ancestry_of(self, name: str) -> Iterator[str]:
        """Yield a row, the row that it starts as, and so on."""
        yield name
        start = self.rows[name].start
        if start is not None and start.row is not None:
            yield from self._ancestry_of(start.row)

    def owner_of_network(self, name: str) -> str:
        """Return the row whose parameters say what the network of a row is."""
        *_, owner = self._ancestry_of(name)
        return owner

    def planned_rows(self) -> dict[str, RowConfig]:
        """Return the rows that `plan.rows` names, by themselves or by their study.

        Raises:
            ValueError: If a name is neither that of a row nor that of a study.
        """
        wanted = self.plan.rows
        known = {*self.rows, *(row.study for row in self.rows.values() if row.study)}
        if unknown := [name for name in wanted or () if name not in known]:
            raise ValueError(
                f"plan.rows: no row or study {unknown[0]!r}; there are {', '.join(sorted(known))}"
            )
        return {
            name: row
            for name, row in self.rows.items()
            if (row.study is None if wanted is None else {name, row.study} & set(wanted))
        }

    def _check_teacher(self, name: str, row: RowConfig) -> None:
        """Refuse a teacher whose tokens do not fall on the row's."""
        dataset, network = self.datasets[row.data], row.network.root
        assert isinstance(network, DSDViTConfig)  # the only one that learns from a teacher
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
        flips = row.train is not None and row.train.flip
        if row.teacher == "cached" and flips and not teacher.cache.mirrored:
            raise ValueError(
                f"{name}.train.flip shows mirrored images, but features of them are not kept: set "
                f"teachers.{dataset.teacher}.cache.mirrored, or the row's teacher to online"
            )

    def _check_samplings(self, name: str, row: RowConfig) -> None:
        """Refuse what a row's samplings cannot be measured by, or come from."""
        if row.sweep is not None:
            self._check_metric(f"{name}.sweep.metric", row.sweep.metric, row)
        if row.selection is not None:
            self._check_metric(f"{name}.selection.metric", row.selection.metric, row)
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
        if row.method.root.name != "dsd":
            raise ValueError(
                f"{name}.reconstruction: method {row.method.root.name} has no encoder of its own"
            )
        if row.reconstruction.data not in self.datasets:
            raise ValueError(
                f"{name}.reconstruction.data: no dataset {row.reconstruction.data!r}; datasets.yml "
                f"has {', '.join(self.datasets)}"
            )
        resolution = self.datasets[row.reconstruction.data].preprocess.resolution
        ours = self.datasets[row.data].preprocess.resolution
        if resolution != ours:
            raise ValueError(
                f"{name}.reconstruction.data {row.reconstruction.data} has images of {resolution} "
                f"pixels, the network takes {ours}"
            )


def _with_network(name: str, rows: Mapping[str, Any]) -> Any:
    """Return a row, as written, with the network of the row that it starts from.

    Raises:
        ValueError: If that is no row, or leads back.
    """
    way = [name]
    while (before := _start_of(rows[way[-1]])) is not None:
        if before not in rows:
            raise ValueError(f"conf: {way[-1]}.start.row: no row {before!r}")
        if before in way:
            raise ValueError(f"conf: {name}.start leads back: {' -> '.join([*way, before])}")
        way.append(before)
    owner, row = rows[way[-1]], rows[name]
    if owner is row or "network" in row or "network" not in owner:
        return row
    return {**row, "network": owner["network"]}


def _start_of(row: Any) -> str | None:
    """Return the row that a row, as written, starts from."""
    start = row.get("start") if isinstance(row, Mapping) else None
    return start.get("row") if isinstance(start, Mapping) else None


def _is_dataset(value: Any) -> bool:
    return isinstance(value, Mapping) and ("raw" in value or "preprocess" in value)


def _explain(error: ValidationError) -> str:
    """Return one line a mistake: its path as written in the YAML, what is wrong, the value."""
    lines = []
    for mistake in error.errors():
        path = ".".join(_as_written(mistake["loc"]))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "unknown key"
        elif mistake["type"] not in ("missing", "value_error"):
            message += f" (got {mistake['input']!r})"
        lines.append(f"{path}: {message}" if path else message)
    return "conf: " + "\n      ".join(lines)


def _as_written(place: tuple[int | str, ...]) -> Iterator[str]:
    """Yield the keys that lead to a value, without what pydantic puts between them."""
    before = None
    for part in place:
        # Behind one of several models stands its name, which is no key.
        if part not in ("rows", "datasets") and before not in _ONE_OF_SEVERAL:
            yield str(part)
        before = part
