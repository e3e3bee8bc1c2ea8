"""Arrow IPC shards: fixed-size tensors with a key and a label, memory-mapped, written whole.

A *shard set* is a directory:

    shard-00000.arrow ...   records: key, label (int32), source, crc32, data (fixed-size binary)
    shard-00000.json  ...   what became of the shard's share: num_records, bytes, sha256, rejects
    manifest.parquet        key, label, source, shard, record, reason (null unless rejected)
    manifest.json           the header: shape, dtype, classes, an entry a shard, provenance; last

A shard appears by rename when it is complete, so whatever has a name is whole: a killed job goes
on at the first missing shard. A set without `manifest.json` is unfinished. The JSON files carry a
checksum of themselves, the header the sha256 of all else, each record a CRC of its data.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:  # a node's annotation needs `Shards` at run time, but neither of these
    import pandas as pd
    import pyarrow as pa

from selfdistill.files import (
    DamagedError,
    atomic_path,
    fingerprint,
    locked_file,
    naming_full_disk,
    sha256_of,
    sha256_once,
    write_json,
)

_FORMAT = 2
_RECORDS_PER_BATCH = 64
HEADER, MANIFEST = "manifest.json", "manifest.parquet"
_CHECKSUM = "checksum"  # key of a JSON file's checksum of the rest of it
_NOBODY = -1  # shard and record of a reject
_REPAIR = "run the repair pipeline of its dataset, or the stage that makes it"


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

    Raises:
        ValueError: On entry, if another process is writing this shard.
        OSError: If the disk is full; the message names the shard.
    """

    def __init__(self, directory: Path, shard: int, shape: Sequence[int], dtype: str) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._target = directory / shard_name(shard)
        self._num_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._data = np.empty((_RECORDS_PER_BATCH, self._num_bytes), np.uint8)
        self._rest: list[tuple[str, int, str, int]] = []  # key, label, source, crc32
        self._num_records = 0
        self._rejects: list[dict[str, Any]] = []

    def append(self, key: str, label: int, record: np.ndarray, source: str = "") -> None:
        """Add a record; a wrong shape or dtype is a ValueError.

        Args:
            key: Its name, unique in the set.
            label: Class index; -1 where unknown.
            record: The tensor.
            source: Where it was made from: a path, or archive and member; may be empty.
        """
        if record.shape != self.shape or record.dtype != self.dtype:
            raise ValueError(
                f"{key}: record is {record.dtype}{list(record.shape)}, the shard holds "
                f"{self.dtype}{list(self.shape)}; open the writer with the record's shape and dtype"
            )
        row = self._data[len(self._rest)]
        row[:] = np.ascontiguousarray(record).reshape(-1).view(np.uint8)
        self._rest.append((key, label, source, zlib.crc32(row)))
        if len(self._rest) == _RECORDS_PER_BATCH:
            self._flush()

    def reject(self, key: str, reason: str, label: int = -1, source: str = "") -> None:
        """Note that the source named `key` has no record, and why."""
        self._rejects.append({"key": key, "label": label, "source": source, "reason": reason})

    def __enter__(self) -> Self:
        import pyarrow as pa

        self._schema = pa.schema(
            [
                ("key", pa.string()), ("label", pa.int32()), ("source", pa.string()),
                ("crc32", pa.uint32()), ("data", pa.binary(self._num_bytes)),
            ]
        )  # fmt: skip
        self._temporary = self._target.with_name(f".{self._target.name}.tmp")
        with naming_full_disk(self._target), ExitStack() as opened:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(locked_file(self._temporary))
            opened.push(self._sweep)
            self._sink = _HashedFile(file)
            self._writer = pa.ipc.new_file(self._sink, self._schema)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with naming_full_disk(self._target), self._opened:
            if kind is None:
                self._complete()
            else:
                self._temporary.unlink(missing_ok=True)

    def _sweep(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove what was begun, while it is locked still, if there was an error."""
        if kind is not None:
            self._temporary.unlink(missing_ok=True)

    def _complete(self) -> None:
        self._flush()
        self._writer.close()
        self._sink.sync()
        summary = {
            "file": self._target.name,
            "num_records": self._num_records,
            "bytes": self._sink.tell(),
            "sha256": self._sink.sha256,
            "rejects": self._rejects,
        }
        write_json(self._target.with_suffix(".json"), checksummed(summary))
        self._temporary.replace(self._target)

    def _flush(self) -> None:
        import pyarrow as pa

        if not (num := len(self._rest)):
            return
        kinds = self._schema.types
        columns = [
            pa.array(column, type=kind)
            for column, kind in zip(zip(*self._rest, strict=True), kinds[:-1], strict=True)
        ]
        data = pa.py_buffer(self._data[:num])
        columns.append(pa.FixedSizeBinaryArray.from_buffers(kinds[-1], num, [None, data]))
        with naming_full_disk(self._target):
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._num_records += num
        self._rest.clear()


class _HashedFile:
    """A file that is written from its start to its end, and hashed on the way."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Leave the file to whoever opened it."""


class _OpenShard(NamedTuple):
    """A shard's columns, batch by batch, in the memory map."""

    data: list[np.ndarray]  # (n, *shape) each
    crc32: list[np.ndarray]
    keys: "list[pa.Array]"


@dataclass(frozen=True)
class Shards:
    """A finished shard set: a handle that is cheap to pass around and to pickle.

    Attributes:
        path: The directory.
        header: The content of its `manifest.json`.
        strict: Whether each record that is read is compared with its checksum.
    """

    path: Path
    header: dict[str, Any] = field(repr=False)
    strict: bool = False
    _opened: dict[int, _OpenShard] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path, *, strict: bool = False) -> Self:
        """Open a shard set after checking that each shard is there and has its full length.

        Raises:
            FileNotFoundError: If there is no finished shard set at `path`.
            DamagedError: If a shard is missing or truncated, or the header is damaged; the message
                names the file.
        """
        shards = cls(path, read_header(path), strict)
        for entry in shards.header["shards"]:
            if fault := length_fault(path / entry["file"], entry["bytes"]):
                raise DamagedError(f"{path / entry['file']}: {fault}; {_REPAIR}")
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

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the shards' sha256 and of what the header says beside."""
        # Another version of Parquet may write the same manifest in other bytes.
        return fingerprint({key: self.header[key] for key in self.header if key != "manifest"})

    @cached_property
    def manifest(self) -> "pd.DataFrame":
        """A line a source: key, label, source, shard, record, reason (null unless rejected)."""
        return self._lines().to_pandas()

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices of the records, (N,), int64."""
        lines = self._lines("label", "record")
        labels, records = (lines.column(name).to_numpy() for name in ("label", "record"))
        return labels[records != _NOBODY].astype(np.int64)

    def _lines(self, *columns: str) -> "pa.Table":
        """Read columns of the manifest, all if none is named, after comparing its sha256."""
        import pyarrow.parquet as pq

        file = self.path / MANIFEST
        if not file.is_file() or sha256_once(file) != self.header["manifest"]["sha256"]:
            raise DamagedError(f"{file}: is damaged or missing; {_REPAIR}")
        return pq.read_table(file, columns=list(columns) or None)

    @property
    def keys(self) -> list[str]:
        """Key of each record, (N,)."""
        return self.keys_of(range(len(self)))

    def keys_of(self, indices: Iterable[int] | np.ndarray) -> list[str]:
        """Return the keys of the records at `indices`."""
        return [shard.keys[batch][row].as_py() for _, shard, batch, row in self._find(indices)]

    def read(
        self,
        indices: Iterable[int] | np.ndarray,
        parts: np.ndarray | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the records at `indices`, copied out of the memory map.

        Args:
            indices: Numbers of records in [0, N), in any order, repeats allowed.
            parts: For each of them, the one entry of its first axis that is wanted, and read.
            out: Where to write them; None makes a new array.

        Returns:
            (len(indices), *shape) array; without the first axis of `shape` if `parts` is given.

        Raises:
            IndexError: If there is no such record.
            DamagedError: If reading is strict and a record is damaged; the message names its file.
        """
        wanted = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices)
        shape = self.shape if parts is None else self.shape[1:]
        out = np.empty((len(wanted), *shape), self.dtype) if out is None else out
        for position, (number, shard, batch, row) in enumerate(self._find(wanted)):
            record = shard.data[batch][row]
            if self.strict and zlib.crc32(record) != shard.crc32[batch][row]:
                name = self.path / shard_name(number)
                raise DamagedError(f"{name}: record {shard.keys[batch][row]} is damaged; {_REPAIR}")
            out[position] = record if parts is None else record[parts[position]]
        return out

    def _find(
        self, indices: Iterable[int] | np.ndarray
    ) -> Iterator[tuple[int, _OpenShard, int, int]]:
        """Yield shard, batch and row of each record."""
        wanted = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"{self.path}: records are 0 to {len(self) - 1}, not {wanted}")
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        batches, rows = np.divmod(wanted - self._starts[numbers], _RECORDS_PER_BATCH)
        places = zip(numbers.tolist(), batches.tolist(), rows.tolist(), strict=True)
        for number, batch, row in places:
            shard = self._opened.get(number) or self._open(number)
            yield number, shard, batch, row

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.shard_sizes])[:-1].astype(np.int64)

    def _open(self, number: int) -> _OpenShard:
        """Map a shard into memory; threads that do it at once all do the same."""
        import pyarrow as pa

        path = self.path / shard_name(number)
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [file.get_batch(batch) for batch in range(file.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{path}: is damaged ({error}); {_REPAIR}") from error
        data = [
            np.frombuffer(batch.column("data").buffers()[1], self.dtype).reshape(-1, *self.shape)
            for batch in batches
        ]
        crc32 = [batch.column("crc32").to_numpy() for batch in batches]
        opened = _OpenShard(data, crc32, [batch.column("key") for batch in batches])
        return self._opened.setdefault(number, opened)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header, "strict": self.strict, "_opened": {}}


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of the shard set at `path`.

    Raises:
        FileNotFoundError: If there is no finished shard set.
        ValueError: If it was written by another version of this package, or is damaged
            (DamagedError).
    """
    file = path / HEADER
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: no finished shard set here ({HEADER} is missing); run the stage that makes it"
        )
    found = _format(file)
    if found != _FORMAT:
        raise ValueError(
            f"{file}: the shards are of format {found}, this version reads {_FORMAT}; delete "
            f"{path} and run the stage that makes it again"
        )
    return read_checked(file)


def _format(file: Path) -> int:
    """Return the version of the format that a header was written in; the first did not say."""
    try:
        value = json.loads(file.read_bytes())
        return int(value["format"]) if "shards" not in value or "format" in value else 1
    except (ValueError, TypeError, KeyError):
        return _FORMAT  # a damaged one, or none at all, as reading it will show


def summary_name(shard: int) -> str:
    """Return the name of the file that says what became of a shard's share."""
    return f"shard-{shard:05d}.json"


def checksummed(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a checksum of itself."""
    return {**value, _CHECKSUM: fingerprint(value)}


def read_checked(file: Path) -> dict[str, Any]:
    """Read a JSON object that carries a checksum of itself.

    Raises:
        DamagedError: If the file is damaged or missing; the message names it.
    """
    try:
        value = json.loads(file.read_bytes())
        is_whole = value.pop(_CHECKSUM) == fingerprint(value)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise DamagedError(f"{file}: is damaged or missing; {_REPAIR}")
    return value


def length_fault(file: Path, num_bytes: int) -> str | None:
    """Say what is wrong with a file that should be `num_bytes` long; None if nothing."""
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size == num_bytes:
        return None
    return f"is {'truncated' if size < num_bytes else 'too long'} ({size:,} bytes of {num_bytes:,})"


def finalize(
    directory: Path,
    *,
    num_shards: int,
    shape: Sequence[int],
    dtype: str,
    class_names: Sequence[str] = (),
    about: dict[str, Any] | None = None,
) -> Shards:
    """Write the manifest of a directory whose shards are all complete, and open it.

    Args:
        directory: The shard set.
        num_shards: How many shards it has.
        shape: Shape of one record's tensor.
        dtype: NumPy name of the element type.
        class_names: Names in the order of the labels.
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
    manifest = directory / MANIFEST
    _write_manifest(manifest, summaries)
    header = {
        "format": _FORMAT,
        "num_records": sum(summary["num_records"] for summary in summaries),
        "num_rejects": sum(len(summary["rejects"]) for summary in summaries),
        "shape": list(shape),
        "dtype": str(np.dtype(dtype)),
        "class_names": list(class_names),
        "shards": [entry_of(summary) for summary in summaries],
        "manifest": {"bytes": manifest.stat().st_size, "sha256": sha256_of(manifest)},
        "about": json.loads(json.dumps(about or {})),  # as it will be read: lists, not tuples
    }
    write_json(directory / HEADER, checksummed(header))
    return Shards.open(directory)


def entry_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the header says of a shard, from what its writer noted."""
    return {name: value for name, value in summary.items() if name != "rejects"}


def _summary(file: Path) -> dict[str, Any]:
    """Return what the writer of a shard noted, after checking that the shard is whole."""
    summary = read_checked(file.with_suffix(".json"))
    if fault := length_fault(file, summary["bytes"]):
        raise DamagedError(
            f"{file}: {fault}; delete it and run again: only this shard is made anew"
        )
    return summary


def _write_manifest(file: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Write a line for each record and each reject, shard by shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("key", pa.string()), ("label", pa.int32()), ("source", pa.string()),
            ("shard", pa.int32()), ("record", pa.int32()), ("reason", pa.string()),
        ]
    )  # fmt: skip
    parts = [schema.empty_table()]
    for number, summary in enumerate(summaries):
        mapped = pa.memory_map(str(file.with_name(summary["file"])))
        records = pa.ipc.open_file(mapped).read_all().select(["key", "label", "source"])
        num = len(records)
        places = {"shard": np.full(num, number, np.int32), "record": np.arange(num, dtype=np.int32)}
        for name, column in places.items():
            records = records.append_column(name, pa.array(column))
        parts.append(records.append_column("reason", pa.nulls(num, pa.string())))
        rejects = [{**reject, "shard": _NOBODY, "record": _NOBODY} for reject in summary["rejects"]]
        parts.append(pa.Table.from_pylist(rejects, schema))
    with atomic_path(file) as temporary:
        pq.write_table(pa.concat_tables(parts), temporary)
