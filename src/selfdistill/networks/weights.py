"""Published weights from files of any origin, executing nothing of them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by name, executing nothing of it.

    Args:
        path: A `.safetensors` file, or a state dict saved by torch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, or holds anything but tensors by name.
    """
    read = safetensors.torch.load_file if path.suffix == ".safetensors" else _unpickle
    return read_tensors(path, read)


def read_tensors(path: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    """Read a file by `read`, and refuse what is not tensors by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, or holds anything but tensors by name.
    """
    try:
        weights = read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a file of weights, or damaged: {error}") from error
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise ValueError(f"{path} holds something else than tensors by name")
    return dict(weights)


def check_keys(
    path: Path, network: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Compare the names and shapes in a file with those of a network.

    Args:
        path: The file, for the message.
        network: Its title, for the message.
        weights: What the file has.
        expected: State dict of the network.

    Raises:
        ValueError: If they differ; it names the file and the first few of the keys.
    """
    shared = weights.keys() & expected.keys()
    problems = {
        "missing": expected.keys() - shared,
        "unexpected": weights.keys() - shared,
        "of another shape": {k for k in shared if weights[k].shape != expected[k].shape},
    }
    found = [f"{what}: {_shortened(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{path} is not {network}; {'; '.join(found)}")


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names and float32 values, in the order of the names."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()


def check_digest(found: str, expected: str, title: str) -> None:
    """Raise ValueError if the digest of a network's weights is not what configuration says."""
    if found != expected:
        raise ValueError(
            f"the weights of {title} are others than its weights_sha256 says: they hash to "
            f"{found}; fetch the right ones, or correct it"
        )


def _unpickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _shortened(keys: Iterable[str], most: int = 4) -> str:
    """List the first few names and how many more there are."""
    names = sorted(keys)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
