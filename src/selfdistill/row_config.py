"""A row: what it is trained as, from what, and how it is sampled; checked by itself."""

from typing import Literal, NamedTuple, Self, get_args

from pydantic import Field, model_validator

from selfdistill.base_config import Config
from selfdistill.data.augment_config import NUM_AUGMENT_LABELS
from selfdistill.diffusion.config import (
    ChainSolverName,
    FlowSolverName,
    GridConfig,
    LevelSolverName,
    SolverConfig,
)
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.diffusion_config import DiffusionConfig
from selfdistill.methods.progressive_config import ProgressiveConfig
from selfdistill.methods.sid_config import EDM_DEVIATION, SiDConfig
from selfdistill.methods.ssd_config import SSDConfig
from selfdistill.metrics.config import METRICS, PublishedMetric
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dit_config import DiTConfig
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.edm_config import DenoiserConfig, EDM2Config
from selfdistill.networks.origin_config import OriginConfig
from selfdistill.networks.tap_config import ChannelsTap, TapConfig
from selfdistill.networks.text_unet_config import TextUNetConfig
from selfdistill.pipelines.sample.config import ReconstructionConfig, SampleConfig
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.selection_config import SelectionConfig

_TIMES = frozenset({"timestep_shift", "last_step", "times", "levels"})


class _Process(NamedTuple):
    """What samplings of a kind of network are by.

    Attributes:
        solvers: Its solvers.
        keys: Which of the keys that say where a grid's times lie.
    """

    solvers: tuple[str, ...]
    keys: frozenset[str]


def process_of(network: Config, method: Config | None = None) -> _Process:
    """Return what samplings of a network are by, as a method asks it; None: as it is."""
    if isinstance(network, DenoiserConfig) or isinstance(method, SiDConfig):
        return _Process(get_args(LevelSolverName), frozenset({"levels"}))
    if isinstance(network, DiTConfig | TextUNetConfig):
        return _Process(get_args(ChainSolverName), frozenset({"times"}))
    return _Process(get_args(FlowSolverName), frozenset({"timestep_shift", "last_step"}))


class StartConfig(OriginConfig):
    """What a row's network starts as.

    Attributes:
        teacher: The row whose network it learns from, where that is another one: SiD2A starts as
            SiD's generator and learns from the teacher that this one had. None: from the start.
    """

    teacher: str | None = None


class PaperConfig(Config):
    """The figures we are held to.

    Attributes:
        name: Whose tables the row is a line of, in `selfdistill.methods.config.PAPERS`.
        params: Parameters of the network.
        data: The dataset of the figures. Ours stand beside them only if data, number of samples
            and reference are the same.
        datasets: That of the figures of some samplings, by sampling, where it is another one.
        num_samples: Samples of an evaluation; None: it is not published, and nothing compares.
        uncertain: Samplings of which it is not certain that their figures are theirs; the report
            marks them.
        reference: Name of the published reference file, or of several in the order in which they
            are believed; None: statistics of the dataset itself.
        recipe_published: Whether the paper says how the row was made, or trained: where it does
            not, the report marks the row.
        samplings: Figures by sampling of the row, then by metric.
        deviations: Their standard deviations over repeated evaluations, likewise, where there are.
    """

    name: Literal["dsd", "ssd", "sida"]
    params: int
    data: str
    datasets: dict[str, str] = {}
    num_samples: int | None
    reference: str | tuple[str, ...] | None
    recipe_published: bool = True
    uncertain: tuple[str, ...] = ()
    samplings: dict[str, dict[PublishedMetric, float]]
    deviations: dict[str, dict[PublishedMetric, float]] = {}


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
        evaluation: Key of `evaluations`, what its samplings are measured by; None: `evaluation`.
        latents: Set of latents of the dataset that the network lives in, which a VAE decodes; None:
            the images themselves.
        start: What the network starts as; None: random.
        teacher: Whether a teacher's features are taken from disk, or made while training: the same
            numbers, for room on the disk or for time on the GPU.
        network: The architecture; a row that starts from another one has that row's.
        method: The objective.
        train: The loop's parameters; None: the checkpoint is the start as it is.
        selection: How the best state of the training is selected; None: the last one is taken.
        samplings: Samplings of the one checkpoint, by name; a case of a study may have none.
        reconstruction: What the checkpoint encodes and decodes; None: nothing.
        sweep: Samplings that guidance is picked from; None: there is no sweep.
    """

    paper: PaperConfig | None = None
    study: str | None = None
    data: str
    evaluation: str | None = None
    latents: str | None = None
    start: StartConfig | None = None
    teacher: Literal["cached", "online"] = "cached"
    network: NetworkConfig
    method: MethodConfig
    train: TrainConfig | None
    selection: SelectionConfig | None = None
    samplings: dict[str, SampleConfig] = {}
    reconstruction: ReconstructionConfig | None = None
    sweep: SweepConfig | None = None

    @property
    def paper_name(self) -> str | None:
        """Name of the paper whose line it is; None: it is a case of a study."""
        return None if self.paper is None else self.paper.name

    @property
    def sampled_data(self) -> list[str]:
        """The datasets whose classes are sampled, and whose images samples are held against."""
        points = self.sweep.points.values() if self.sweep else ()
        every = (one.data or self.data for one in (*self.samplings.values(), *points))
        return list(dict.fromkeys(every))

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        method, of_images = self.method.root, isinstance(self.network.root, DSDViTConfig)
        if method.name == "dsd" and not of_images:
            raise ValueError(
                f"method dsd trains its own ViT, not a {self.network.root.name}: set network.name "
                "to dsd_vit"
            )
        if of_images and self.latents is not None:
            raise ValueError("latents: DSD's ViT has latents of its own; leave the key out")
        self._check_process()
        if isinstance(self.network.root, TextUNetConfig):
            self._check_hooked()
        if self.start is None and (method.needs_start or self.train is None):
            reason = f"method {method.name} tunes a network" if self.train else "train is null"
            raise ValueError(f"{reason}: give a start, another row or published weights")
        turns = method.turns
        if unknown := sorted(set(getattr(self.train, "optimizers", ())) - set(turns)):
            raise ValueError(
                f"train.optimizers.{unknown[0]}: there is no such turn of method {method.name}; "
                f"there are {', '.join(turns)}"
            )
        takes_teacher = self.train is not None and method.takes_teacher
        if self.start is not None and self.start.teacher is not None and not takes_teacher:
            what = f"method {method.name}" if self.train else "what is not trained"
            raise ValueError(f"start.teacher: {what} learns from no other network")
        if self.train is None and self.teacher == "online":
            raise ValueError("teacher online is of a training: leave it out, or give `train`")
        if self.selection is not None:
            self._check_selection(self.selection)
        return self

    def _check_selection(self, selection: SelectionConfig) -> None:
        """Refuse to select what is not trained, by samples that are not the row's, or by its own.

        A number that something was selected by is no measurement of it.
        """
        if self.train is None:
            raise ValueError("selection is of a training: leave it out, or give `train`")
        if selection.sampling not in self.samplings:
            raise ValueError(
                f"selection.sampling: the row has no sampling {selection.sampling!r}; it has "
                f"{', '.join(self.samplings) or 'none'}"
            )
        if selection.nimg % self.train.log_nimg:
            raise ValueError(
                f"selection.nimg {selection.nimg} is no multiple of train.log_nimg "
                f"{self.train.log_nimg}"
            )
        if self.samplings[selection.sampling].data not in (None, self.data):
            raise ValueError(
                f"selection.sampling {selection.sampling!r} is of other data than the row's "
                f"{self.data}: name one of its own"
            )
        points = self.sweep.points if self.sweep else {}
        for name, sampling in {**self.samplings, **points}.items():
            if sampling.seed == selection.seed:
                raise ValueError(
                    f"selection.seed {selection.seed} is that of the sampling {name!r}, whose "
                    "numbers would be of the noise that the state was selected by: take another"
                )

    def _check_hooked(self) -> None:
        """Refuse what a network cannot do whose passes are mixed by hooks."""
        site = getattr(getattr(self.method.root, "target", None), "site", "output")
        if site == "gated":
            raise ValueError("method.target.site gated: a U-Net's branches have no gates; branch")
        if getattr(self.method.root, "include_variance", False):
            raise ValueError("method.include_variance: network text_unet predicts no variance")
        for key in ("compile", "recompute_activations"):
            if site != "output" and getattr(self.train, key, False):
                raise ValueError(f"train.{key}: network text_unet is mixed by hooks; set it false")
        for name, sampling in self.samplings.items():
            if sampling.solver == "ddpm":
                raise ValueError(
                    f"samplings.{name}.solver ddpm: network text_unet predicts no variance; ddim"
                )
        if isinstance(self.method.root, ProgressiveConfig):
            grid = self.method.root.grid
            if grid.times is None or grid.times[-1] == 0:
                raise ValueError("method.grid.times: Stable Diffusion's end at time 1; name them")

    def _check_process(self) -> None:
        """Refuse a method, grids and solvers that are not of what the network predicts."""
        network, method = self.network.root, self.method.root
        of_chain = isinstance(network, DiTConfig | TextUNetConfig)
        of_tokens = isinstance(network, DSDViTConfig)
        solvers: dict[str, SolverConfig] = dict(self.samplings)
        solvers |= self.sweep.points if self.sweep else {}
        grids: dict[str, GridConfig] = {f"samplings.{name}": one for name, one in solvers.items()}
        if isinstance(method, SSDConfig):
            grids["method.grid"] = method.grid
            if method.synthetic is not None:
                grids["method.synthetic"] = method.synthetic
            if method.only_step is not None and self.paper is not None:
                raise ValueError("method.only_step is of a study: what it tunes samples one step")
            if getattr(method.target, "weight", None) == "midpoint" and not of_chain:
                raise ValueError("method.target.weight midpoint is of discrete times: take auto")
            if method.guided_channels is not None and of_tokens:
                raise ValueError("method.guided_channels: DSD's latents are guided whole")
        if isinstance(method, ProgressiveConfig):
            grids["method.grid"] = method.grid
        if of_chain and getattr(method, "time_distribution", "uniform") != "uniform":
            raise ValueError("method.time_distribution: discrete times are drawn evenly")
        process, owner = process_of(network, method), f"network {network.name}"
        if isinstance(method, SiDConfig) and not isinstance(network, DenoiserConfig):
            if isinstance(network, TextUNetConfig):
                raise ValueError(
                    "method sid distils EDM's networks, DiT, SiT and DSD: no text_unet"
                )
            owner += " as method sid asks it"
        for key, grid in grids.items():
            unused = GridConfig(num_steps=grid.num_steps)
            for name in _TIMES - process.keys:
                if getattr(grid, name) != getattr(unused, name):
                    raise ValueError(f"{key}: {name} means nothing for {owner}")
            if not isinstance(grid, SolverConfig):
                continue
            if grid.solver not in process.solvers:
                raise ValueError(
                    f"{key}.solver {grid.solver!r} is not of {owner}: take one of "
                    f"{', '.join(process.solvers)}"
                )
            if grid.guided_channels is not None and of_tokens:
                raise ValueError(f"{key}.guided_channels: DSD's latents are guided whole")
        if isinstance(method, SSDConfig | ProgressiveConfig):
            self._check_grid(method)
        self._check_levels()
        if getattr(method, "augment", None) is not None:
            self._check_augment()

    def _check_augment(self) -> None:
        """Refuse to augment what is no image, or for a network that cannot be told."""
        network = self.network.root
        if self.latents is not None:
            raise ValueError(
                "method.augment turns and moves images, and means nothing for latents: leave it out"
            )
        if getattr(network, "augment_dim", 0) != NUM_AUGMENT_LABELS:
            raise ValueError(
                f"method.augment: network {network.name} is not told of it, and would make "
                f"augmented images: take a ddpmpp with augment_dim {NUM_AUGMENT_LABELS}, or leave "
                "method.augment out"
            )

    def _check_levels(self) -> None:
        """Refuse what only networks of noise levels know, and what they do not."""
        network, method = self.network.root, self.method.root
        of_levels = isinstance(network, DenoiserConfig)
        of_edm2 = isinstance(network, EDM2Config)
        if getattr(method, "normalize_weights", False) and not of_edm2:
            raise ValueError("method.normalize_weights is of EDM2's networks: set it false")
        if isinstance(method, SiDConfig):
            self._check_sid(method)
        if isinstance(method, DiffusionConfig):
            if (method.levels is not None) != of_levels:
                what = "has to say" if of_levels else "means nothing where there are no"
                raise ValueError(f"method.levels {what} noise levels: network {network.name}")
            if method.log_variance and not of_edm2:
                raise ValueError("method.log_variance is of EDM2's networks: set it false")
            if method.log_variance and not getattr(network, "logvar_channels", 0):
                raise ValueError("method.log_variance: give network.logvar_channels, e.g. 128")
            if of_levels and method.time_distribution != "uniform":
                raise ValueError("method.time_distribution: method.levels says it; leave it out")
        if of_levels and getattr(self.train, "compile", False):
            raise ValueError(
                f"train.compile: blocks of network {network.name} differ too much for one graph "
                "each; set it false"
            )
        if of_levels and getattr(getattr(method, "target", None), "site", "output") != "output":
            raise ValueError("method.target.site: of EDM's networks the output alone is mixed")

    def _check_sid(self, method: SiDConfig) -> None:
        """Refuse networks that cannot be distilled so, and samplings in more than the one step."""
        network = self.network.root
        of_levels = isinstance(network, DenoiserConfig)
        if of_levels and method.data_deviation is not None:
            raise ValueError(
                f"method.data_deviation {method.data_deviation}: network {network.name} takes "
                f"{EDM_DEVIATION} for granted; leave the key out"
            )
        if not of_levels and method.data_deviation is None:
            raise ValueError(
                f"method.data_deviation: say it of the data of network {network.name}: of latents "
                "that are scaled as DiT's, or normalised as DSD's, about 1"
            )
        if method.adversary is not None and self.train is not None:
            joins, size = method.adversary.joins_nimg, self.train.batch_size
            if (-(-self.train.total_nimg // size) - 1) * size <= joins:  # at the last step's begin
                raise ValueError(
                    f"train.total_nimg {self.train.total_nimg} ends before the generator is "
                    f"judged: method.adversary.joins_nimg is {joins}"
                )
        if method.teacher_head == "clean" and not isinstance(network, DSDViTConfig):
            raise ValueError(f"method.teacher_head clean: network {network.name} has no such head")
        if method.adversary is not None:
            self._check_tap(method.adversary.tap)
        if self.sweep is not None:
            raise ValueError("sweep: a one-step generator is not guided; leave it out")
        for name, sampling in self.samplings.items():
            if sampling.levels != (method.start_level,):
                raise ValueError(
                    f"samplings.{name}.levels must be [{method.start_level}], method."
                    "start_level: the generator denoises at no other"
                )
            if sampling.guidance != 1 or sampling.churn is not None:
                raise ValueError(
                    f"samplings.{name}: a one-step generator is neither guided nor churned"
                )

    def _check_tap(self, tap: TapConfig | None) -> None:
        """Refuse a tap that the network has not, and none where it needs one."""
        network, key = self.network.root, "method.adversary.tap"
        if isinstance(network, DenoiserConfig):
            if tap is not None:
                raise ValueError(
                    f"{key}: network {network.name} judges by its encoder; leave it out"
                )
            return
        assert not isinstance(network, TextUNetConfig)  # refused before
        if tap is None:
            raise ValueError(
                f"{key}: network {network.name} has no encoder to judge by; say where, e.g. "
                "{kind: channels, block: " + f"{-(-network.depth // 2)}" + "}"
            )
        if isinstance(tap, ChannelsTap) and tap.block > network.depth:
            raise ValueError(
                f"{key}.block {tap.block}: network {network.name} has {network.depth} blocks"
            )

    def _check_grid(self, method: SSDConfig | ProgressiveConfig) -> None:
        """Refuse to sample at times that the method has not tuned."""
        halved = isinstance(method, ProgressiveConfig)
        tuned = method.grid.model_copy(update={"halvings": method.grid.halvings + halved})
        for name, sampling in self.samplings.items():
            for key in GridConfig.model_fields:
                ours, theirs = getattr(sampling, key), getattr(tuned, key)
                if ours != theirs:
                    raise ValueError(
                        f"samplings.{name}.{key} is {ours}, but the network is tuned for {theirs}"
                    )

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
        for name, values in self.paper.deviations.items():
            if alone := values.keys() - self.paper.samplings.get(name, {}).keys():
                raise ValueError(f"paper.deviations.{name}: there is no figure {min(alone)!r}")
        for name in (*self.paper.samplings, *self.paper.datasets, *self.paper.uncertain):
            if name not in self.samplings:
                raise ValueError(
                    f"paper.samplings: the row has no sampling {name!r}; it has "
                    f"{', '.join(self.samplings)}"
                )
        return self
