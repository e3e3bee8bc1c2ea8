"""Pickles of NumPy arrays in dicts and lists, read without executing anything that is in them.

Of arrays the four or so names that NumPy itself writes are known, and stood in for; all else is
refused.
"""

import math
import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

_NUMBERS = re.compile(r"[fiu][1248]")
_DEEPEST = 4  # dicts within dicts


class _Type:
    """`numpy.ndarray` itself, which a pickle only names."""


class _DType:
    """A type of plain numbers, as it was pickled."""

    def __init__(self, kind: Any = "", *_: Any) -> None:
        self.kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def value(self) -> np.dtype:
        if not (isinstance(self.kind, str) and _NUMBERS.fullmatch(self.kind)):
            raise pickle.UnpicklingError(f"an array in it is of type {self.kind!r}, not of numbers")
        if self.order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError("an array in it has no byte order")
        return np.dtype(self.order.replace("|", "=") + self.kind)


class _Array:
    """An array as it was pickled; its state comes after it."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> np.ndarray:
        _, shape, dtype, fortran_order, data = self.state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array in it has no type, or no content")
        sizes, kind = tuple(shape), dtype.value()
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise pickle.UnpicklingError("an array in it has no shape")
        if math.prod(sizes) * kind.itemsize != len(data):
            raise pickle.UnpicklingError(f"an array of {sizes} in it has {len(data)} bytes")
        order = "F" if fortran_order else "C"
        values = np.frombuffer(data, kind).reshape(sizes, order=order)  # type: ignore[call-overload]
        return np.ascontiguousarray(values, kind.newbyteorder("="))


def _encoded(text: Any, encoding: Any = None) -> bytes:
    """Return the bytes that Python 3 writes as text in protocols below 3."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError("it encodes something that is no text")
    return text.encode("latin-1")


def _empty() -> bytes:
    """Return what Python 3 writes as a call in protocols below 3."""
    return b""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _empty,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name; others than the known ones are refused."""
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        # A new one each time: the file could set attributes of what it is given.
        return lambda *arguments: known(*arguments)


def read_array_pickle(file: IO[bytes]) -> Any:
    """Read dicts, lists, arrays of numbers and plain values, executing nothing.

    Args:
        file: At the pickle's first byte; written by Python 2 or 3.

    Returns:
        What was pickled; keys that are bytes, as Python 2 writes them, come as text.

    Raises:
        ValueError: If it holds anything else, or is damaged; the message names no file.
    """
    try:
        return _plain(_Reader(file, encoding="bytes").load(), {}, 0)
    except Exception as error:  # a damaged or forged pickle may raise anything
        raise ValueError(f"not a pickle of arrays, and not read: {error}") from error


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Return a value with arrays in the places of what stood in for them."""
    if depth > _DEEPEST:
        raise pickle.UnpicklingError("it is nested too deep")
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        made: Any = {_text(key): _plain(one, done, depth + 1) for key, one in value.items()}
    elif isinstance(value, list | tuple):
        made = [_plain(one, done, depth + 1) for one in value]
    elif isinstance(value, _Array):
        made = value.value()
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    else:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    done[id(value)] = made
    return made


def _text(key: Any) -> Any:
    return key.decode("latin-1") if isinstance(key, bytes) else key
