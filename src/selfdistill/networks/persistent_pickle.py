"""NVIDIA's pickles of networks, read without executing anything that is in them.

The published networks of EDM, EDM2, SiD and SiDA are pickles of whole modules, and of the Python
source of their classes, which the public reader executes. This one knows the few names that such a
file needs, takes the tensors, and refuses all else.
"""

import hashlib
import io
import json
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from selfdistill.files import atomic_path, sha256_once, write_json
from selfdistill.networks.weights import read_weights

logger = logging.getLogger(__name__)

_NETWORK = "ema"  # what of a file is the network: the averaged one


@dataclass(frozen=True)
class _Module:
    """A module as it was pickled: its class's name, and its attributes."""

    class_name: str
    state: Mapping[str, Any]
    source_sha256: str | None = None


class _Container:
    """A ModuleDict or ModuleList, of which only the attributes are of interest."""

    def __init__(self, *args: Any) -> None:
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Dict(dict[str, Any]):
    """A dnnlib EasyDict."""

    def __setstate__(self, state: Any) -> None:
        """Take no attributes beside the items."""


def _as_module(about: Mapping[str, Any]) -> _Module:
    if about.get("type") != "class" or not isinstance(about.get("state"), Mapping):
        raise pickle.UnpicklingError("an object in it is no instance of a class")
    source = str(about.get("module_src", "")).encode()
    return _Module(str(about["class_name"]), about["state"], hashlib.sha256(source).hexdigest())


def _storage(content: bytes) -> Any:
    file = io.BytesIO(content)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own says how to execute it
        raise pickle.UnpicklingError("the bytes of a tensor in it are something else") from error


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _nothing(*_: Any) -> None:
    """Stand in for a method that was looked up."""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _as_module,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch.nn.modules.container", "ModuleList"): _Container,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "getattr"): _nothing,  # of a hook that is bound to a network
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
for _place in ("numpy.core.multiarray", "numpy._core.multiarray"):
    for _name in ("_reconstruct", "scalar"):
        _KNOWN[_place, _name] = getattr(import_module("numpy._core.multiarray"), _name)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name; others than the known ones are refused."""
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no network needs")
        return known


class Pickled(NamedTuple):
    """What a pickle holds of a network.

    Attributes:
        weights: Its state, by name, in the types of the file.
        class_name: Name of its class.
        arguments: What it was built with, as JSON values.
        source_sha256: Of the Python source beside it, which is not executed.
    """

    weights: dict[str, Tensor]
    class_name: str
    arguments: dict[str, Any]
    source_sha256: str


def read_pickle(path: Path) -> Pickled:
    """Read a network from a pickle of NVIDIA's layout, executing nothing of it.

    Args:
        path: The file; of several networks in it, the averaged one is read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds names that a network does not need, is damaged, or has no network.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is not a pickle of a network, and not read: {error}") from error
    found = content.get(_NETWORK) if isinstance(content, dict) else content
    if not isinstance(found, _Module):
        raise ValueError(f"{path} holds no network under {_NETWORK!r}")
    arguments = {
        key: value
        for key, value in found.state.get("_init_kwargs", {}).items()
        if isinstance(value, bool | int | float | str | list | tuple)
    }
    weights = dict(_tensors(found.state, ""))
    return Pickled(weights, found.class_name, arguments, str(found.source_sha256))


def read_published(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file; of a pickle, by way of safetensors beside it.

    A pickle is converted once: `<name>.safetensors` and `<name>.json`, which says what it was made
    from. They are made anew if the pickle is another one.

    Args:
        path: A `.pkl`, a `.safetensors`, or a state dict saved by torch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds anything but a network or tensors.
    """
    if path.suffix != ".pkl":
        return read_weights(path)
    converted, about = path.with_suffix(".safetensors"), path.with_suffix(".json")
    digest = sha256_once(path)
    if not converted.is_file() or _origin(about) != digest:
        pickled = read_pickle(path)
        with atomic_path(converted) as temporary:
            weights = {name: value.contiguous() for name, value in pickled.weights.items()}
            save_file(weights, temporary)
        write_json(
            about,
            {
                "pickle": path.name,
                "sha256": digest,
                "class_name": pickled.class_name,
                "arguments": pickled.arguments,
                "source_sha256": pickled.source_sha256,
            },
        )
        logger.info("Converted %s to %s", path, converted.name)
    return read_weights(converted)


def _origin(about: Path) -> str | None:
    """Return the sha256 of the pickle that was converted; None if that is not known."""
    try:
        return json.loads(about.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tensors(state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's state dict, by name."""
    passing = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in passing):
                yield prefix + name, value
    for name, module in (state.get("_modules") or {}).items():
        if isinstance(module, _Module | _Container):
            yield from _tensors(module.state, f"{prefix}{name}.")
