"""NVIDIA's pickles of networks, read without executing anything that is in them.

The published networks of EDM, EDM2, SiD and SiDA are pickles of whole modules, and of the Python
source of their classes, which the public reader executes. This one knows the few names that such a
file needs, takes the tensors, and refuses all else.
"""

import hashlib
import io
import json
import logging
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfdistill.files import atomic_path, origin_of, sha256_once, write_json
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


class _Ignored:
    """An array or a type of NumPy's: no weight is one, and its own state could be forged."""

    def __init__(self, *args: Any) -> None:
        """Take nothing."""

    def __setstate__(self, state: Any) -> None:
        """Take nothing."""


def _as_module(about: Mapping[str, Any]) -> _Module:
    if about.get("type") != "class" or not isinstance(about.get("state"), Mapping):
        raise pickle.UnpicklingError("an object in it is no instance of a class")
    source = str(about.get("module_src", "")).encode()
    return _Module(str(about["class_name"]), about["state"], hashlib.sha256(source).hexdigest())


def _storage(content: bytes) -> Any:
    file = io.BytesIO(content)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own says how to execute it
        raise pickle.UnpicklingError("the bytes of a tensor in it are something else") from error
    if not isinstance(found, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("the bytes of a tensor in it are something else")
    return found


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor of its own that lies densely within a storage, as weights do."""
    sizes, strides = tuple(size), tuple(stride)
    numbers = (offset, *sizes, *strides)
    if not isinstance(storage, torch.storage.TypedStorage) or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise pickle.UnpicklingError("a tensor in it has no storage, or no shape")
    if offset + math.prod(sizes) > len(storage):
        raise pickle.UnpicklingError(f"a tensor of {sizes} in it is larger than its storage")
    expected = torch.empty(sizes, device="meta").stride()
    if any(one != other and n > 1 for one, other, n in zip(strides, expected, sizes, strict=True)):
        raise pickle.UnpicklingError(f"a tensor of {sizes} in it has strides {strides}")
    values: Tensor = torch.tensor([], dtype=storage.dtype)
    return values.set_(storage.untyped(), offset, sizes, expected).clone()


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _nothing(*_: Any) -> None:
    """Stand in for a method that was looked up."""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _as_module,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch.nn.modules.container", "ModuleList"): _Container,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("builtins", "getattr"): _nothing,  # of a hook that is bound to a network
    ("numpy", "dtype"): _Ignored,
    ("numpy", "ndarray"): _Ignored,
    **{
        (f"numpy.{core}.multiarray", name): _Ignored
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}
_DEEPEST = 16  # modules within modules


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name; others than the known ones are refused."""
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no network needs")
        # Of a function, a new one each time: its attributes can be set by the file.
        return known if isinstance(known, type) else lambda *arguments: known(*arguments)


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
            return _network_in(_Reader(file).load())
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged or forged pickle may raise anything
        raise ValueError(f"{path} is not a pickle of a network, and not read: {error}") from error


def _network_in(content: Any) -> Pickled:
    found = content.get(_NETWORK) if isinstance(content, dict) else content
    if not isinstance(found, _Module):
        raise ValueError(f"it holds no network under {_NETWORK!r}")
    arguments = {
        key: value
        for key, value in found.state.get("_init_kwargs", {}).items()
        if isinstance(key, str) and _is_plain(value)
    }
    weights: dict[str, Tensor] = {}
    _collect(found.state, "", weights, (), set())
    return Pickled(weights, found.class_name, arguments, str(found.source_sha256))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _collect(
    state: Mapping[str, Any],
    prefix: str,
    weights: dict[str, Tensor],
    above: tuple[int, ...],
    met: set[int],
) -> None:
    """Add the tensors of a module's state dict to `weights`, by name."""
    if id(state) in met or len(above) > _DEEPEST:
        raise ValueError(f"module {prefix or '.'} stands in it twice, or too deep")
    met.add(id(state))
    passing = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in passing):
                weights[prefix + name] = value
    for name, module in (state.get("_modules") or {}).items():
        if isinstance(module, _Module | _Container):
            _collect(module.state, f"{prefix}{name}.", weights, (*above, id(state)), met)


class Published(NamedTuple):
    """Weights that somebody published.

    Attributes:
        weights: By name.
        class_name: Of the pickled network; None: it was no pickle.
        arguments: What it was built with.
    """

    weights: dict[str, Tensor]
    class_name: str | None = None
    arguments: Mapping[str, Any] = {}


def read_published(path: Path) -> Published:
    """Return the weights in a file; of a pickle, by way of safetensors beside it.

    A pickle is converted once: `<name>.pkl.safetensors` and `<name>.pkl.json`, which says what it
    was made from. They are made anew if either file is another one.

    Args:
        path: A `.pkl`, a `.safetensors`, or a state dict saved by torch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds anything but a network or tensors.
    """
    if path.suffix != ".pkl":
        return Published(read_weights(path))
    converted, about = (path.with_name(path.name + end) for end in (".safetensors", ".json"))
    known = _known(about)
    if known.get("sha256") != sha256_once(path) or not (
        converted.is_file() and known.get("converted_sha256") == sha256_once(converted)
    ):
        pickled, origin = read_pickle(path), _known(origin_of(path))
        with atomic_path(converted) as temporary:
            save_file(pickled.weights, temporary)
        known = {
            "pickle": path.name,
            "sha256": sha256_once(path),
            "url": origin.get("url") if origin.get("sha256") == sha256_once(path) else None,
            "converted_sha256": sha256_once(converted),
            "class_name": pickled.class_name,
            "arguments": pickled.arguments,
            "source_sha256": pickled.source_sha256,
        }
        write_json(about, known)
        logger.info("Converted %s to %s", path, converted.name)
    return Published(read_weights(converted), known["class_name"], known["arguments"])


def _known(about: Path) -> dict[str, Any]:
    """Return what a JSON file knows; nothing if there is no such file."""
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
