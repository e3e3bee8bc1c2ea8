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
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

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
_LINES_PER_GROUP = 1 << 16  # of the manifest


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
        self._rest: list[tuple[str, int, str, int]] = []  # key, label, source, crc32
        self._num_records = 0
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
        row = self._data[len(self._rest)]
        row[:] = np.ascontiguousarray(record).reshape(-1).view(np.uint8)
        self._rest.append((key, label, source, zlib.crc32(row)))
        if len(self._rest) == RECORDS_PER_BATCH:
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
            "offsets": self._offsets,
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
        begun = self._sink.tell()
        with naming_full_disk(self._target):
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._offsets.append(self._sink.start_of_last(data.size))
        self._sink.start_writing(begun)
        self._num_records += num
        self._rest.clear()


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
        "format": FORMAT,
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
            ("crc32", pa.uint32()), ("shard", pa.int32()), ("record", pa.int32()),
            ("reason", pa.string()),
        ]
    )  # fmt: skip
    with atomic_path(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        pending: list[pa.Table] = []
        for number, summary in enumerate(summaries):
            pending += _manifest_of_shard(file.with_name(summary["file"]), number, summary, schema)
            if sum(map(len, pending)) >= _LINES_PER_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()
        writer.write_table(pa.concat_tables([schema.empty_table(), *pending]))


def _manifest_of_shard(
    shard: Path, number: int, summary: dict[str, Any], schema: "pa.Schema"
) -> "list[pa.Table]":
    """Return a line for each record and each reject of a shard."""
    import pyarrow as pa

    mapped = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    num = len(mapped)
    columns = {
        "shard": pa.array(np.full(num, number, np.int32)),
        "record": pa.array(np.arange(num, dtype=np.int32)),
        "reason": pa.nulls(num, pa.string()),
    }
    empty = mapped.schema.empty_table()  # concatenation copies, and the map can be let go
    for name in ("key", "label", "source", "crc32"):
        columns[name] = pa.concat_arrays([*mapped[name].chunks, *empty[name].chunks])
    rejects = [{**reject, "shard": NOBODY, "record": NOBODY} for reject in summary["rejects"]]
    return [
        pa.table([columns[name] for name in schema.names], schema=schema),
        pa.Table.from_pylist(rejects, schema),
    ]
