"""How shard sets are written: a shard at a time, then the manifest."""

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from selfdistill.data.shards import (
    FORMAT,
    HEADER,
    MANIFEST,
    NOBODY,
    RECORDS_PER_BATCH,
    Shards,
    checksummed,
    entry_of,
    length_fault,
    missing_shards,
    read_checked,
    shard_name,
)
from selfdistill.files import (
    DamagedError,
    atomic_path,
    locked_file,
    naming_full_disk,
    sha256_of,
    start_writing,
    write_json,
)

_ALIGNMENT = 8  # of buffers in Arrow files, bytes
_LINES_PER_GROUP = 1 << 14  # of the manifest
# What is said of a record beside its data, with the Arrow types.
_LINE = {"key": "string", "label": "int32", "source": "string", "crc32": "uint32"}


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
        self._data = np.empty((RECORDS_PER_BATCH, self._num_bytes), np.uint8)
        self._lines: dict[str, list[Any]] = {name: [] for name in _LINE}
        self._num_written = 0
        self._offsets: list[int] = []  # in the file, of the data of each batch
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
        row = self._data[len(self._lines["key"]) - self._num_written]
        row[:] = np.ascontiguousarray(record).reshape(-1).view(np.uint8)
        for name, value in zip(_LINE, (key, label, source, zlib.crc32(row)), strict=True):
            self._lines[name].append(value)
        if len(self._lines["key"]) - self._num_written == RECORDS_PER_BATCH:
            self._flush()

    def reject(self, key: str, reason: str, label: int = -1, source: str = "") -> None:
        """Note that the source named `key` has no record, and why."""
        self._rejects.append({"key": key, "label": label, "source": source, "reason": reason})

    def __enter__(self) -> Self:
        import pyarrow as pa

        line = [(name, getattr(pa, kind)()) for name, kind in _LINE.items()]
        self._schema = pa.schema([*line, ("data", pa.binary(self._num_bytes))])
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
            "num_records": self._num_written,
            "bytes": self._sink.tell(),
            "sha256": self._sink.sha256,
            "offsets": self._offsets,
            "lines": self._lines,
            "rejects": self._rejects,
        }
        write_json(self._target.with_suffix(".json"), checksummed(summary))
        self._temporary.replace(self._target)

    def _flush(self) -> None:
        import pyarrow as pa

        first, num = self._num_written, len(self._lines["key"]) - self._num_written
        if not num:
            return
        columns = [
            pa.array(self._lines[name][first:], type=self._schema.field(name).type)
            for name in _LINE
        ]
        data, kind = pa.py_buffer(self._data[:num]), self._schema.field("data").type
        columns.append(pa.FixedSizeBinaryArray.from_buffers(kind, num, [None, data]))
        begun = self._sink.tell()
        with naming_full_disk(self._target):
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._offsets.append(self._sink.start_of_last(data.size))
        self._sink.start_writing(begun)
        self._num_written += num


class _HashedFile:
    """A file that is written from its start to its end, and hashed on the way."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0
        self._last: deque[tuple[int, int]] = deque(maxlen=2)  # writes: where, how many bytes

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        num_bytes = memoryview(data).nbytes
        self._file.write(data)
        self._digest.update(data)
        self._last.append((self._size, num_bytes))
        self._size += num_bytes
        return num_bytes

    def start_of_last(self, num_bytes: int) -> int:
        """Return where the last buffer starts, of so many bytes and padded to eight."""
        start = self._size - (-(-num_bytes // _ALIGNMENT) * _ALIGNMENT)
        assert (start, num_bytes) in self._last, "this pyarrow writes batches in another way"
        return start

    def start_writing(self, begun: int) -> None:
        """Let the disk begin with what was written since `begun`."""
        self._file.flush()
        start_writing(self._file, begun, self._size - begun)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Leave the file to whoever opened it."""


def finalize(
    directory: Path,
    *,
    num_shards: int,
    shape: Sequence[int],
    dtype: str,
    class_names: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    job: str = "",
) -> Shards:
    """Write the manifest of a directory whose shards are all complete, and open it.

    Args:
        directory: The shard set.
        num_shards: How many shards it has.
        shape: Shape of one record's tensor.
        dtype: NumPy name of the element type.
        class_names: Names in the order of the labels.
        about: Provenance, kept in the header as it is (JSON values).
        job: Name of the job that made the shards.

    Raises:
        ValueError: If a shard is missing or truncated; the message names it.
    """
    if missing := missing_shards(directory, num_shards):
        raise ValueError(
            f"{directory}: shards {missing[:10]} are missing; run the stage again, it makes only "
            "those"
        )
    entries, num_rejects = write_manifest(directory, num_shards)
    header = {
        "format": FORMAT,
        "num_records": sum(entry["num_records"] for entry in entries),
        "num_rejects": num_rejects,
        "shape": list(shape),
        "dtype": str(np.dtype(dtype)),
        "class_names": list(class_names),
        "shards": entries,
        "about": json.loads(json.dumps(about or {})),  # as it will be read: lists, not tuples
        "job": job,
    }
    write_header(directory, header)
    return Shards.open(directory)


def write_header(directory: Path, header: dict[str, Any]) -> None:
    """Write the header of a set, whose manifest is written."""
    manifest = directory / MANIFEST
    entry = {"bytes": manifest.stat().st_size, "sha256": sha256_of(manifest)}
    write_json(directory / HEADER, checksummed({**header, "manifest": entry}))


def write_manifest(directory: Path, num_shards: int) -> tuple[list[dict[str, Any]], int]:
    """Write a line for each record and each reject, of what the shards' writers noted.

    Returns:
        What the header says of each shard, and the number of rejects.

    Raises:
        DamagedError: If a shard is truncated, or what was noted of it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = [(name, getattr(pa, kind)()) for name, kind in _LINE.items()]
    places = [("shard", pa.int32()), ("record", pa.int32()), ("reason", pa.string())]
    schema = pa.schema([*line, *places])
    entries, num_rejects, pending = [], 0, [schema.empty_table()]
    with (
        atomic_path(directory / MANIFEST) as temporary,
        pq.ParquetWriter(temporary, schema) as writer,
    ):
        for number in range(num_shards):
            summary = _summary(directory / shard_name(number))
            num = summary["num_records"]
            lines = {**summary["lines"], "shard": [number] * num, "record": range(num)}
            rejects = [
                {**reject, "shard": NOBODY, "record": NOBODY} for reject in summary["rejects"]
            ]
            pending.append(pa.table({**lines, "reason": [None] * num}, schema=schema))
            pending.append(pa.Table.from_pylist(rejects, schema))
            if sum(map(len, pending)) >= _LINES_PER_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()
            entries.append(entry_of(summary))
            num_rejects += len(rejects)
        if pending:
            writer.write_table(pa.concat_tables(pending))
    return entries, num_rejects


def _summary(file: Path) -> dict[str, Any]:
    """Return what the writer of a shard noted, after checking that the shard is whole."""
    summary = read_checked(file.with_suffix(".json"))
    if fault := length_fault(file, summary["bytes"]):
        raise DamagedError(
            f"{file}: {fault}; delete it and run again: only this shard is made anew"
        )
    return summary
