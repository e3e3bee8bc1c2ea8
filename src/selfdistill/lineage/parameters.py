"""What a machine's own conf may say in a stage of DVC."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io import CatalogConfigResolver

from selfdistill.config_loader import LOADER_ARGS, ProjectConfigLoader

# They change no result of a row: the machine, and what one runs by hand.
_FREE = {"distributed", "plan", "compare"}
# Files from outside are known by their content, wherever they lie: catalog entries by the pinned
# sha256, weights of teachers and VAEs by their own, and in the manifest of what they make.
_PLACES = {"filepath", "path", "url", "metadata"}
_RANDOM = "random"  # weights of a teacher or VAE that no file has
_FROM_OUTSIDE = ("raw.", "references.", "weights.", "teachers", "vaes")


def check_local(conf: Path) -> None:
    """Refuse what conf/local says and DVC cannot see: it would lock another result.

    Paths of raw images and of published weights, ranks, and datasets of one's own are welcome.

    Args:
        conf: The folder with the environments.

    Raises:
        ValueError: If it changes a parameter of the rows, or where or how results are written.
    """
    latest = ProjectConfigLoader.latest
    try:
        base, local = (
            ProjectConfigLoader(str(conf), env=env, **LOADER_ARGS)
            for env in (LOADER_ARGS["base_env"], LOADER_ARGS["default_run_env"])
        )
    finally:
        ProjectConfigLoader.latest = latest
    if base["globals"]["data_root"] != local["globals"]["data_root"]:
        raise ValueError(
            "conf/local/globals.yml: data_root is set, but dvc.yaml looks for results below data: "
            "leave it out, and mount the disk there or clone the project on it"
        )
    for kind in ("parameters", "catalog"):
        theirs, ours = base[kind], local[kind]
        changed = [
            name
            for name, value in theirs.items()
            if name not in _FREE and _what_counts(name, value) != _what_counts(name, ours[name])
        ]
        if kind == "catalog":
            patterns = CatalogConfigResolver(theirs)
            changed += [
                name
                for name in ours.keys() - theirs.keys()
                if not name.startswith(_FROM_OUTSIDE)
                and (patterns.is_pattern(name) or patterns.match_dataset_pattern(name))
            ]
        if changed:
            raise ValueError(
                f"conf/local: its {kind} change {', '.join(sorted(changed))}, which DVC does not "
                "see: change conf/base instead, or params.yaml (dvc exp run --set-param)"
            )


def _what_counts(name: str, value: Any) -> Any:
    """Return a value without what says only where something lies."""
    if not name.startswith(_FROM_OUTSIDE) or not isinstance(value, Mapping):
        return value
    return {
        key: part == _RANDOM if key == "weights" else _what_counts(name, part)
        for key, part in value.items()
        if key not in _PLACES
    }
