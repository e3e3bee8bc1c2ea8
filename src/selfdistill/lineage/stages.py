"""DVC's stages, from the registry, the catalog, the parameters and the imports.

A stage is what one folder of `pipelines/` does for one dataset, row or sampling. It depends on the
files that its nodes load, on the code that they run, on the parameters that they take, and on what
the catalog says of files from outside. Code and parameters are written down by stages of their own.
The machine's share, `params:distributed`, changes no result and is left out, and so are the keys of
a training that change no bit.
"""

import operator
from collections.abc import Iterator
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

from kedro.io import DataCatalog
from kedro.pipeline.node import Node

from selfdistill.config import ProjectConfig
from selfdistill.config_loader import CHANGES, ProjectConfigLoader, merged
from selfdistill.diffusion.config import SolverConfig
from selfdistill.io.report import CurvesDataset, MetricsDataset, PictureDataset
from selfdistill.methods.registry import code_of
from selfdistill.pipeline_registry import register_pipelines
from selfdistill.pipelines.train import selecting
from selfdistill.pipelines.train.config import NEUTRAL
from selfdistill.settings import CONFIG_LOADER_ARGS
from selfdistill.sources import Code

BASE = "base"
FOLDER = Path("pipelines.dvc")
GIVEN = FOLDER / "given.yaml"
LOCK = Path("requirements.lock")
PROGRAMS = FOLDER / "code"
PARAMETERS = FOLDER / "params"
# Not params.yaml, which DVC reads for the templates of every dvc.yaml beside it; and it parses YAML
# a hundred times as slowly as JSON.
VALUES = "values.json"
_PARAMS = "params:"
_MACHINE = "params:distributed"
_KNOWN = "selfdistill.methods.known"


class Stage(NamedTuple):
    """Nodes that DVC runs together.

    Attributes:
        file: The dvc.yaml that it stands in, relative to the project.
        name: Its name in there.
        pipeline: A registered pipeline with all of its nodes.
        nodes: The nodes, in the order of a run.
    """

    file: Path
    name: str
    pipeline: str
    nodes: list[Node]

    @property
    def made(self) -> list[str]:
        """Catalog entries that its nodes make."""
        return [name for node in self.nodes for name in node.outputs]

    @property
    def taken(self) -> list[str]:
        """Catalog entries and parameters that its nodes take, and do not make."""
        names = dict.fromkeys(name for node in self.nodes for name in node.inputs)
        return [name for name in names if name not in self.made]

    @property
    def parameters(self) -> list[str]:
        """The parameters among these, dotted, none inside another; but for the machine's."""
        names = [name for name in self.taken if name.startswith(_PARAMS) and name != _MACHINE]
        keys = sorted(name.removeprefix(_PARAMS) for name in names)
        return [key for key in keys if not any(key.startswith(f"{one}.") for one in keys)]

    @property
    def up(self) -> Path:
        """The way from its file's folder to the project."""
        return Path(*[".."] * (len(self.file.parts) - 1))


class Program(NamedTuple):
    """Code that stages run: a stage of its own, which writes down what it is.

    Docstrings and comments are not written down. An edit of them runs this stage anew, and none of
    those that depend on what it writes.

    Attributes:
        name: Name of the stage.
        modules: Dotted names; what they import belongs to it.
    """

    name: str
    modules: list[str]

    @property
    def record(self) -> Path:
        """What it writes, relative to the project."""
        return PROGRAMS / f"{self.name}.json"

    def describe(self) -> dict[str, Any]:
        """Return the stage as it stands in a dvc.yaml."""
        files = (Path("src") / file for file in Code(self.modules).relative_files)
        output = [self.record.as_posix(), LOCK.as_posix()]
        return {
            "wdir": "../..",
            "cmd": " ".join(["python -m selfdistill.sources", *output, *self.modules]),
            "deps": [LOCK.as_posix(), *(file.as_posix() for file in files)],
            "outs": [self.record.as_posix()],
        }


class Family:
    """The stages of one environment.

    Args:
        project: Folder with conf.
        env: Name of the environment; what conf/local says is not looked at.
        base: The family of `base`, whose datasets and rows on them this one leaves out; None for
            that family itself.

    Raises:
        ValueError: If conf is wrong.
    """

    def __init__(self, project: Path, env: str, base: "Family | None" = None) -> None:
        self.env = env
        conf = str(project / "conf")
        loader = ProjectConfigLoader(conf, env=env, **CONFIG_LOADER_ARGS)
        self.config = ProjectConfig.from_parameters(loader["parameters"])
        self.pipelines = register_pipelines()
        self.catalog = DataCatalog.from_config(loader["catalog"])
        self.parameters = loader["parameters"]
        theirs = base.config.datasets if base else {}
        self.datasets = [name for name in self.config.datasets if name not in theirs]
        self.rows = [name for name, row in self.config.rows.items() if row.data in self.datasets]
        self._folder = FOLDER if base is None else FOLDER / env
        self._root = Path("dvc.yaml") if base is None else self._folder / "dvc.yaml"

    @cached_property
    def stages(self) -> list[Stage]:
        """All stages; those of the tables stand in a file of their own."""
        found: dict[tuple[Path, str], Stage] = {}
        for pipeline, nodes in self._pipelines():
            for node in nodes:
                place = self._place(node)
                found.setdefault(place, Stage(*place, pipeline, [])).nodes.append(node)
        return list(found.values())

    def describe(self, stage: Stage) -> dict[str, Any]:
        """Return a stage as it stands in a dvc.yaml."""
        # Named, or KEDRO_ENV would decide; local is base with the machine's own paths and ranks.
        env = CONFIG_LOADER_ARGS["default_run_env"] if self.env == BASE else self.env
        nodes = ",".join(node.name for node in stage.nodes)
        # exec: a shell left between DVC and the run would hide from it that DVC is gone.
        command = f"exec kedro run --env={env} --pipelines={stage.pipeline} --nodes={nodes}"
        parts: dict[str, Any] = {
            "wdir": stage.up.as_posix(),
            "cmd": command,
            "deps": [*sorted(self._loaded(stage)), self.program(stage).record.as_posix()],
            "params": self._params(stage),
            "outs": self._saved(stage, metrics=False),
            "metrics": self._saved(stage, metrics=True),
        }
        return {key: value for key, value in parts.items() if value not in ([], ".")}

    def program(self, stage: Stage) -> "Program":
        """Return the code that a stage runs."""
        nodes = stage.nodes[0].func.__module__
        kind = nodes.split(".")[2]
        if _KNOWN not in Code([nodes]).junctions:
            return Program(kind, [nodes])
        row = self.config.rows[str(owner_of(stage.nodes[0]))]
        network, method = row.network.root.name, row.method.root.name
        name, modules = f"{kind}_{method}_{network}", [nodes, *code_of(network, method)]
        if kind == "train" and row.selection is not None:
            return Program(f"{name}_selecting", [*modules, selecting.MODULE])
        return Program(name, modules)

    def plots(self, stage: Stage) -> list[Any]:
        """Return what `dvc plots` shows of a stage: its loss and its pictures."""
        plots: list[Any] = []
        for name in stage.made:
            dataset = self._dataset(name)
            if isinstance(dataset, CurvesDataset):
                file = (stage.up / dataset.files[-1]).as_posix()
                plots.append({f"{name}: loss": {"x": {file: "nimg"}, "y": {file: "loss"}}})
            elif isinstance(dataset, PictureDataset):
                plots += [(stage.up / file).as_posix() for file in dataset.files]
        return plots

    def given(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """Return what the catalog says of the files from outside that a stage takes, by entry."""
        entries = {}
        for name in sorted(self._entries(stage)):
            if (given := getattr(self._dataset(name), "given", None)) is not None:
                entries[name] = given
        return entries

    def _pipelines(self) -> Iterator[tuple[str, list[Node]]]:
        """Yield pipelines, and the nodes of each that are ours, every node once."""
        for name in [*self.datasets, *self.rows]:
            yield name, [node for node in self.pipelines[name].nodes if owner_of(node) == name]
        drawn: set[Node] = set()  # by a study too
        for name, figure in self.config.figures.items():
            if set(figure.rows) <= set(self.rows):
                drawn.update(self.pipelines[name].nodes)
                yield name, self.pipelines[name].nodes
        studies = {self.config.rows[name].study for name in self.rows}
        for name in [*sorted(study for study in studies if study), "report"]:
            nodes = [node for node in self.pipelines[name].nodes if owner_of(node) is None]
            rest = [node for node in nodes if node not in drawn and self._is_of_our_rows(node)]
            yield name, rest

    def _is_of_our_rows(self, node: Node) -> bool:
        names = (name.removeprefix(_PARAMS) for name in node.inputs)
        return {name.partition(".")[0] for name in names} <= set(self.rows)

    def _place(self, node: Node) -> tuple[Path, str]:
        """Return the file and the name of the stage that a node belongs to."""
        stage = node.func.__module__.split(".")[2]
        owner, _, part = str(node.namespace or "").partition(".")
        if owner:
            return self._folder / owner / "dvc.yaml", f"{stage}_{part}" if part else stage
        return self._root, f"{stage}_{node.outputs[0].partition('_')[2]}"  # table_dsd

    def _dataset(self, entry: str) -> Any:
        return self.catalog[entry]

    def _entries(self, stage: Stage) -> list[str]:
        return [name for name in stage.taken if not name.startswith("param")]

    def _loaded(self, stage: Stage) -> list[str]:
        """Return the file of each entry that a stage takes: the first, of entries with several."""
        entries = (getattr(self._dataset(name), "files", []) for name in self._entries(stage))
        return [files[0].as_posix() for files in entries if files]

    def _saved(self, stage: Stage, *, metrics: bool) -> list[str]:
        files: list[Path] = []
        for name in stage.made:
            dataset = self._dataset(name)
            if isinstance(dataset, MetricsDataset) == metrics:
                files += getattr(dataset, "files", [])
        return [file.as_posix() for file in files]

    def _params(self, stage: Stage) -> list[Any]:
        """Return which parameters and which pins a stage depends on."""
        params: list[Any] = [{self.values_file(stage).as_posix(): self.parameters_of(stage)}]
        if entries := self.given(stage):
            params.append({GIVEN.as_posix(): list(entries)})
        return params if stage.parameters else params[1:]

    def parameters_of(self, stage: Stage) -> list[str]:
        """Return the parameters that a stage depends on, dotted.

        A training that selects its best state reads the solver of a sampling: other numbers of
        samples or shards do not make it anew.
        """
        keys: list[str] = []
        for key in stage.parameters:
            if stage.name == "train" and ".samplings." in key:
                written = reduce(operator.getitem, key.split("."), self.parameters)
                solver = (name for name in written if name in SolverConfig.model_fields)
                keys += sorted(f"{key}.{name}" for name in solver)
            else:
                keys.append(key)
        return keys

    def values_file(self, stage: Stage) -> Path:
        """Return where the parameters of a stage stand: beside its dvc.yaml."""
        return stage.file.with_name(VALUES) if stage.up.parts else FOLDER / VALUES

    def values(self) -> dict[Path, dict[str, Any]]:
        """Return the parameters that the stages take, as they are once conf is merged, by file."""
        files: dict[Path, dict[str, Any]] = {}
        for stage in self.stages:
            for parameter in self.parameters_of(stage):
                path = parameter.split(".")
                value = reduce(operator.getitem, path, self.parameters)
                if path[-1] == "train":
                    value = {key: one for key, one in value.items() if key not in NEUTRAL}
                nested = reduce(lambda inner, part: {part: inner}, path[::-1], value)
                file = self.values_file(stage)
                files[file] = merged(files.get(file, {}), nested)
        return files

    def recorder(self) -> dict[str, Any]:
        """Return the stage that writes these files, as it stands in a dvc.yaml."""
        envs = dict.fromkeys((BASE, self.env))
        folders = [Path("conf") / env / "parameters" for env in envs]
        return {
            "wdir": "../..",
            "cmd": f"kedro dvc params {self.env}",
            "deps": [*(folder.as_posix() for folder in folders), CHANGES],
            "outs": [{file.as_posix(): {"cache": False}} for file in self.values()],
        }


def owner_of(node: Node) -> str | None:
    """Return the dataset or row that a node belongs to; None: a table or a study."""
    return node.namespace.partition(".")[0] if node.namespace else None
