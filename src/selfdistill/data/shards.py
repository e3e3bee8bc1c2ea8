"""Arrow IPC shards: fixed-size tensors with a key and a label, memory-mapped, written whole.

A *shard set* is a directory:

    shard-00000.arrow ...   records: key (string), label (int32), data (fixed-size binary)
    shard-00000.json  ...   what became of the shard's share: num_records, bytes, sha256, rejects
    manifest.parquet        key, label, source, shard, record, reason (null unless rejected)
    manifest.json           the header: shape, dtype, classes, an entry a shard, provenance; last

A shard appears by rename when it is complete, so whatever has a name is whole: a killed job goes
on at the first missing shard. A set without `manifest.json` is unfinished.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:  # a node's annotation needs `Shards` at run time, but neither of these
    import pandas as pd
    import pyarrow as pa

from selfdistill.files import fingerprint, sha256_of, temporary_name, write_json

_RECORDS_PER_BATCH = 64
_HEADER, _MANIFEST = "manifest.json", "manifest.parquet"
_MANIFEST_TYPES = {
    "key": "str", "label": "int32", "source": "str", "shard": "int32", "record": "int32",
    "reason": "str",
}  # fmt: skip
_UNKNOWN = ("", -1)  # source and label of a key that nobody knows


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.arrow"


def missing_shards(directory: Path, num_shards: int) -> list[int]:
    """Return the numbers of the shards that have not been completed yet."""
    return [shard for shard in range(num_shards) if not (directory / shard_name(shard)).is_file()]


class ShardWriter:
    """Write one shard; it appears under its name when the `with` block ends without an error.

    Args:
        directory: The shard set, created when absent.
        shard: Number of the shard.
        shape: Shape of one record's tensor.
        dtype: NumPy name of the element type, e.g. "uint8".
    """

    def __init__(self, directory: Path, shard: int, shape: Sequence[int], dtype: str) -> None:
        import pyarrow as pa

        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._target = directory / shard_name(shard)
        self._temporary = temporary_name(self._target)
        num_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._schema = pa.schema(
            [("key", pa.string()), ("label", pa.int32()), ("data", pa.binary(num_bytes))]
        )
        self._pending: list[tuple[str, int, bytes]] = []
        self._num_records = 0
        self._rejects: list[dict[str, str]] = []

    def append(self, key: str, label: int, record: np.ndarray) -> None:
        """Add a record; a wrong shape or dtype is a ValueError."""
        if record.shape != self.shape or record.dtype != self.dtype:
            raise ValueError(
                f"{key}: record is {record.dtype}{list(record.shape)}, the shard holds "
                f"{self.dtype}{list(self.shape)}; open the writer with the record's shape and dtype"
            )
        self._pending.append((key, label, record.tobytes()))
        if len(self._pending) == _RECORDS_PER_BATCH:
            self._flush()

    def reject(self, key: str, reason: str) -> None:
        """Note that the source named `key` has no record, and why."""
        self._rejects.append({"key": key, "reason": reason})

    def __enter__(self) -> Self:
        import pyarrow as pa

        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._sink = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            self._sink.close()
            if kind is None:
                with self._temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                summary = {
                    "num_records": self._num_records,
                    "bytes": self._temporary.stat().st_size,
                    "sha256": sha256_of(self._temporary),
                    "rejects": self._rejects,
                }
                write_json(self._target.with_suffix(".json"), summary)
                self._temporary.replace(self._target)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            columns = [
                pa.array(column, type=kind)
                for column, kind in zip(
                    zip(*self._pending, strict=True), self._schema.types, strict=True
                )
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
            self._num_records += len(self._pending)
            self._pending.clear()


@dataclass(frozen=True)
class Shards:
    """A finished shard set: a handle that is cheap to pass around and to pickle.

    Attributes:
        path: The directory.
        header: The content of its `manifest.json`.
    """

    path: Path
    header: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a shard set after checking that each shard is there and has its full length.

        Raises:
            FileNotFoundError: If there is no finished shard set at `path`.
            ValueError: If a shard is missing or truncated; the message names the file.
        """
        header = path / _HEADER
        if not header.is_file():
            raise FileNotFoundError(
                f"{path}: no finished shard set here ({_HEADER} is missing); "
                "run the stage that makes it"
            )
        shards = cls(path, json.loads(header.read_text(encoding="utf-8")))
        for entry in shards.header["shards"]:
            if fault := _fault(path / entry["file"], entry["bytes"]):
                raise ValueError(f"{fault}; delete {path} and run the stage that makes it again")
        return shards

    def __len__(self) -> int:
        return int(self.header["num_records"])

    @property
    def shard_sizes(self) -> list[int]:
        """Number of records of each shard."""
        return [entry["num_records"] for entry in self.header["shards"]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record's tensor."""
        return tuple(self.header["shape"])

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return np.dtype(self.header["dtype"])

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of the labels; empty when there are none."""
        return list(self.header["class_names"])

    @property
    def about(self) -> dict[str, Any]:
        """Provenance, as it was given to `finalize`."""
        return dict(self.header["about"])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the shards' sha256 and the header."""
        return fingerprint(self.header)

    @cached_property
    def manifest(self) -> "pd.DataFrame":
        """A line a source: key, label, source, shard, record, reason (null unless rejected)."""
        import pandas as pd

        return pd.read_parquet(self.path / _MANIFEST)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices of the records, (N,), int64."""
        return np.concatenate(
            [np.zeros(0, np.int64), *(batch.column("label").to_numpy() for batch in self._batches)]
        ).astype(np.int64)

    @cached_property
    def keys(self) -> list[str]:
        """Key of each record, (N,)."""
        return [key for batch in self._batches for key in batch.column("key").to_pylist()]

    def read(
        self, indices: Iterable[int] | np.ndarray, parts: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the records at `indices`, copied out of the memory map.

        Args:
            indices: Numbers of records in [0, N), in any order, repeats allowed.
            parts: For each of them, the one entry of its first axis that is wanted, and read.

        Returns:
            (len(indices), *shape) array; without the first axis of `shape` if `parts` is given.
        """
        wanted = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices)
        shape = self.shape if parts is None else self.shape[1:]
        out = np.empty((len(wanted), *shape), self.dtype)
        batches = np.searchsorted(self._starts, wanted, side="right") - 1
        for position, (batch, index) in enumerate(zip(batches, wanted, strict=True)):
            record = self._views[batch][index - self._starts[batch]]
            out[position] = record if parts is None else record[parts[position]]
        return out

    @cached_property
    def _batches(self) -> "list[pa.RecordBatch]":
        import pyarrow as pa

        batches = []
        for entry in self.header["shards"]:
            file = pa.ipc.open_file(pa.memory_map(str(self.path / entry["file"])))
            batches += [file.get_batch(number) for number in range(file.num_record_batches)]
        return batches

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)])[:-1]

    @cached_property
    def _views(self) -> list[np.ndarray]:
        views = []
        for batch in self._batches:
            column = batch.column("data")
            flat = np.frombuffer(column.buffers()[1], self.dtype)
            views.append(flat.reshape(batch.num_rows, *self.shape))
        return views

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header}


def _fault(file: Path, num_bytes: int) -> str | None:
    """Say what is wrong with a shard that should be `num_bytes` long; None if nothing."""
    if not file.is_file():
        return f"{file}: shard is missing"
    size = file.stat().st_size
    if size == num_bytes:
        return None
    return f"{file}: shard is truncated ({size:,} bytes of {num_bytes:,})"


def finalize(
    directory: Path,
    *,
    num_shards: int,
    shape: Sequence[int],
    dtype: str,
    class_names: Sequence[str] = (),
    sources: dict[str, tuple[str, int]] | None = None,
    about: dict[str, Any] | None = None,
) -> Shards:
    """Write the manifest of a directory whose shards are all complete, and open it.

    Args:
        directory: The shard set.
        num_shards: How many shards it has.
        shape: Shape of one record's tensor.
        dtype: NumPy name of the element type.
        class_names: Names in the order of the labels.
        sources: For each key, its source (a path, or archive and member) and its label; needed
            only for what the shards do not say: the sources, and the labels of rejects.
        about: Provenance, kept in the header as it is (JSON values).

    Raises:
        ValueError: If a shard is missing or truncated; the message names it.
    """
    if missing := missing_shards(directory, num_shards):
        raise ValueError(
            f"{directory}: shards {missing[:10]} are missing; run the stage again, it makes only "
            "those"
        )
    summaries = [_summary(directory / shard_name(shard)) for shard in range(num_shards)]
    manifest = _manifest(directory, summaries, sources or {})
    manifest.to_parquet(directory / _MANIFEST, index=False)
    header = {
        "num_records": sum(summary["num_records"] for summary in summaries),
        "num_rejects": sum(len(summary["rejects"]) for summary in summaries),
        "shape": list(shape),
        "dtype": str(np.dtype(dtype)),
        "class_names": list(class_names),
        "shards": [
            {name: value for name, value in summary.items() if name != "rejects"}
            for summary in summaries
        ],
        "about": about or {},
    }
    write_json(directory / _HEADER, header)
    return Shards.open(directory)


def _summary(file: Path) -> dict[str, Any]:
    """Return what the writer of a shard noted, after checking that the shard is whole."""
    summary = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    if fault := _fault(file, summary["bytes"]):
        raise ValueError(f"{fault}; delete it and run again: only this shard is made anew")
    return {"file": file.name, **summary}


def _manifest(
    directory: Path, summaries: Sequence[dict[str, Any]], sources: dict[str, tuple[str, int]]
) -> "pd.DataFrame":
    """Return a line for each record and each reject, shard by shard."""
    import pandas as pd

    parts = []
    for shard, summary in enumerate(summaries):
        records = _keys_and_labels(directory / summary["file"])
        parts.append(records.assign(shard=shard, record=range(len(records)), reason=None))
        if summary["rejects"]:
            rejects = pd.DataFrame(summary["rejects"])
            labels = [sources.get(key, _UNKNOWN)[1] for key in rejects["key"]]
            parts.append(rejects.assign(label=labels, shard=-1, record=-1))
    manifest = pd.concat(parts, ignore_index=True)
    manifest["source"] = [sources.get(key, _UNKNOWN)[0] for key in manifest["key"]]
    return manifest[list(_MANIFEST_TYPES)].astype(_MANIFEST_TYPES)


def _keys_and_labels(shard: Path) -> "pd.DataFrame":
    import pyarrow as pa

    with pa.memory_map(str(shard)) as source:
        return pa.ipc.open_file(source).read_all().select(["key", "label"]).to_pandas()
