"""How parameters come together: conf, what an experiment changes, and the command line."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from kedro.config import OmegaConfigLoader

CHANGES = "params.yaml"
LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # Rows of tiny say only how they differ from those of base.
    "merge_strategy": {"parameters": "soft", "tracking": "soft"},
    "config_patterns": {"tracking": ["tracking*"]},
}


class ProjectConfigLoader(OmegaConfigLoader):
    """Kedro's loader, which reads each kind of configuration once and remembers the last one made.

    Parameters are those of conf, changed by `params.yaml` beside conf, where `dvc exp run
    --set-param` writes, changed by `kedro run --params`. The registry builds one pipeline a row, so
    it has to read the parameters of the environment that the session runs in, and Kedro hands it
    nothing.

    Args:
        args: As Kedro's.
        with_changes: Whether `params.yaml` counts.
        kwargs: As Kedro's.
    """

    latest: ClassVar["ProjectConfigLoader | None"] = None

    def __init__(self, *args: Any, with_changes: bool = True, **kwargs: Any) -> None:
        self._with_changes = with_changes
        self._read: dict[str, dict[str, Any]] = {}
        super().__init__(*args, **kwargs)
        ProjectConfigLoader.latest = self

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return a kind of configuration, as a copy.

        Raises:
            ValueError: If `params.yaml` is no mapping, or changes what conf does not have.
        """
        if key not in self._read:
            of_kedro = super().__getitem__
            self._read[key] = self._parameters() if key == "parameters" else of_kedro(key)
        return copy.deepcopy(self._read[key])

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a kind of configuration, whatever the files say."""
        self._read.pop(key, None)
        super().__setitem__(key, value)

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters, without the anchors that rows are written with."""
        found = self._plain_parameters()
        found = super().__getitem__("parameters") if found is None else found
        parameters = {name: value for name, value in found.items() if name[0] != "_"}
        return self._changed(parameters) if self._with_changes else parameters

    def _plain_parameters(self) -> dict[str, Any] | None:
        """Return what Kedro would, ten times as fast, of files that are nothing but YAML.

        None: there is something else to them, such as interpolations, or a mistake, which Kedro
        names.
        """
        if "parameters" in self.data:  # set by hand
            return None
        parameters: dict[str, Any] = {}
        for env in dict.fromkeys((self.base_env, self.env or self.default_run_env)):
            said: dict[str, Any] = {}
            for file in self._parameter_files(env):
                content = _read_plain(file)
                if content is None or said.keys() & content.keys():
                    return None
                said |= content
            parameters = merged(parameters, said)
        return merged(parameters, self.runtime_params or {})

    def _parameter_files(self, env: str) -> list[Path]:
        """Return an environment's files that Kedro takes for parameters."""
        folder = Path(self.conf_source) / env
        files = (file for file in folder.rglob("*") if file.suffix in (".yml", ".yaml", ".json"))
        parts = {file: file.relative_to(folder).parts for file in files}
        return sorted(
            file
            for file, names in parts.items()
            if any(name.startswith("parameters") for name in names)
            and not any(name.startswith(".") for name in names)
        )

    def _changed(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with an experiment's changes of this environment."""
        conf = Path(self.conf_source)
        changes = read_changes(conf.parent / CHANGES)
        for env in changes:
            if not (conf / env).is_dir():
                raise ValueError(
                    f"{CHANGES}: {env} is no environment of conf; changes stand below one, as in "
                    f"{self.base_env}.dsd_b.train.seed"
                )
        ours = self.base_env if self.env in (None, self.default_run_env) else str(self.env)
        mine = changes.get(ours, {})
        if unknown := sorted(mine.keys() - parameters.keys()):
            raise ValueError(f"{CHANGES}: {ours}.{unknown[0]}: conf has no such parameter")
        return merged(merged(parameters, mine), self.runtime_params or {})


class _Loader(yaml.CSafeLoader):
    """libyaml's safe loader, reading values as OmegaConf does: 1e-4 is a number, a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_WITHOUT_POINT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _WITHOUT_POINT, list("-+0123456789"))


def _read_plain(file: Path) -> dict[str, Any] | None:
    """Return a mapping without its anchors; None if it is not plain YAML, or has a mistake."""
    text = file.read_text(encoding="utf-8")
    if "${" in text or file.suffix == ".json":
        return None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode) or _has_key_twice(node, set()):
            return None
        content = loader.construct_document(node)
        return {key: value for key, value in content.items() if not str(key).startswith("_")}
    except yaml.YAMLError:
        return None
    finally:
        loader.dispose()


def _has_key_twice(node: yaml.Node, seen: set[int]) -> bool:
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return False
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return any(_has_key_twice(item, seen) for item in node.value)
    keys = [key.value for key, _ in node.value]
    return len(keys) != len(set(keys)) or any(_has_key_twice(one, seen) for _, one in node.value)


def read_changes(file: Path) -> dict[str, dict[str, Any]]:
    """Return what a file of changes says, by environment; nothing if there is no such file.

    Raises:
        ValueError: If it is no YAML, or no mapping of mappings.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    try:
        changes = yaml.load(text, _Loader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: is no YAML: {error}") from error
    if not isinstance(changes, dict) or not all(isinstance(one, dict) for one in changes.values()):
        raise ValueError(
            f"{file}: is no mapping of environments to parameters; delete it and run kedro dvc sync"
        )
    return changes


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested mappings as one; where both have a value, that from above."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        both[key] = value
    return both
