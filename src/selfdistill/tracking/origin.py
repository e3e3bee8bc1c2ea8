"""Where a run comes from, in MLflow's words: parameters and tags, all of them strings."""

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "pyarrow", "kedro", "dvc", "mlflow", "timm", "torchvision")
_DEFAULT_ENVS = (None, "base", "local")


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as one level of dotted keys; a list is one value, in JSON.

    Args:
        values: Parameters, as the YAML has them.
        prefix: What stands before each key.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def numbers(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the numbers of a line of the curves, by names that MLflow accepts.

    Lists, such as the spectra of the diagnostics, are no curves and are left out.

    Args:
        record: Values by name; a mapping becomes names with its own name before a slash.
        prefix: What stands before each name.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{name}/")
        elif isinstance(value, int | float):
            found[re.sub(r"[^\w\-. :/]", "_", f"{prefix}{name}")] = float(value)
    return found


def origin_tags(root: Path, row: str, env: str | None) -> dict[str, str]:
    """Return what a row's number hangs on beside its parameters: code, lock, versions, machine.

    Args:
        root: The project's root.
        row: Key of the row.
        env: Kedro's environment.
    """
    tags = git_state(root)
    lock = lock_file(root, row, env)
    if lock.is_file():
        tags["dvc_lock_md5"] = hashlib.md5(lock.read_bytes(), usedforsecurity=False).hexdigest()
    tags |= {"python": platform.python_version(), "host": platform.node()}
    tags["platform"] = platform.platform()
    for package in _PACKAGES:
        try:
            tags[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if names := gpus():
        tags["gpus"] = ", ".join(names)
    return tags


def git_state(root: Path) -> dict[str, str]:
    """Return the commit and whether a tracked file differs from it; nothing outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"git_sha": git("rev-parse", "HEAD"), "git_dirty": str(bool(changed)).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def lock_file(root: Path, row: str, env: str | None) -> Path:
    """Return where DVC keeps the lock of a row's stages, be it there or not."""
    family = () if env in _DEFAULT_ENVS else (str(env),)
    return root.joinpath("pipelines.dvc", *family, row, "dvc.lock")


def gpus() -> list[str]:
    """Return the names of NVIDIA's GPUs, as the kernel's driver has them: no GPU is touched."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
