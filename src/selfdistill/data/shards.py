"""Arrow IPC shards: fixed-size tensors with a key and a label, memory-mapped, written whole.

A *shard set* is a directory:

    shard-00000.arrow ...   records: key, label (int32), source, crc32, data (fixed-size binary)
    shard-00000.json  ...   what became of the shard's share: num_records, bytes, sha256, offsets of
                            the data in the file, lines of the manifest, rejects
    manifest.parquet        key, label, source, crc32, shard, record, reason (null unless rejected)
    manifest.json           the header: shape, dtype, classes, an entry a shard, provenance; last

A shard appears by rename when it is complete, so whatever has a name is whole: a killed job goes
on at the first missing shard. A set without `manifest.json` is unfinished. The JSON files carry a
checksum of themselves, the header the sha256 of all else, each record a CRC of its data.

Shards are Arrow files for whoever looks at them. We read their data where the header says it lies,
and all else from the manifest, so no damage to what frames the data can lead a reader astray.
"""

import json
import mmap
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:  # a node's annotation needs `Shards` at run time, but neither of these
    import pandas as pd
    import pyarrow as pa

from selfdistill.files import (
    DamagedError,
    fingerprint,
    sha256_once,
)

FORMAT = 2
RECORDS_PER_BATCH = 64
HEADER, MANIFEST = "manifest.json", "manifest.parquet"
_CHECKSUM = "checksum"  # key of a JSON file's checksum of the rest of it
NOBODY = -1  # shard and record of a reject
_REPAIR = "run the repair pipeline of its dataset, or delete the set and run its stage"


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.arrow"


def missing_shards(directory: Path, num_shards: int) -> list[int]:
    """Return the numbers of the shards that have not been completed yet."""
    return [shard for shard in range(num_shards) if not (directory / shard_name(shard)).is_file()]


class _Mapped(NamedTuple):
    """A shard in memory."""

    pages: mmap.mmap
    offsets: list[int]  # of the data of each batch
    batches: list[np.ndarray]  # (n, *shape) each

    def prefetch(self, batch: int, row: int, part: int | None) -> None:
        """Let the kernel read a record, or one entry of its first axis, beside other things."""
        record = self.batches[batch][row]
        start, size = self.offsets[batch] + row * record.nbytes, record.nbytes
        if part is not None:
            size //= len(record)
            start += part * size
        begin = start - start % mmap.PAGESIZE
        self.pages.madvise(mmap.MADV_WILLNEED, begin, start + size - begin)


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
    _mapped: dict[int, "_Mapped"] = field(default_factory=dict, repr=False, compare=False)

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
            file = path / entry["file"]
            if fault := length_fault(file, entry["bytes"]):
                raise DamagedError(f"{file}: {fault}; {_REPAIR}")
            if not _noted(file).is_file():
                raise DamagedError(f"{_noted(file)}: is missing; {_REPAIR}")
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
        # Another version of Parquet may write the same manifest in other bytes, another version of
        # our code the same shards.
        beside = ("manifest", "job")
        return fingerprint({key: self.header[key] for key in self.header if key not in beside})

    @cached_property
    def manifest(self) -> "pd.DataFrame":
        """A line a source: key, label, source, shard, record, reason (null unless rejected)."""
        return self._lines().to_pandas()

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices of the records, (N,), int64."""
        return self._column("label").to_numpy().astype(np.int64)

    @cached_property
    def _crc32(self) -> np.ndarray:
        return self._column("crc32").to_numpy()

    @cached_property
    def _keys(self) -> "pa.Array":
        return self._column("key").combine_chunks()

    def _column(self, name: str) -> "pa.ChunkedArray":
        """Read a column of the manifest, of records only."""
        import pyarrow.compute as pc

        lines = self._lines(name, "record")
        return lines.column(name).filter(pc.not_equal(lines.column("record"), NOBODY))

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
        import pyarrow as pa

        wanted = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices)
        keys: list[str] = self._keys.take(pa.array(wanted, pa.int64())).to_pylist()
        return keys

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
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"{self.path}: records are 0 to {len(self) - 1}, not {wanted}")
        shape = self.shape if parts is None else self.shape[1:]
        out = np.empty((len(wanted), *shape), self.dtype) if out is None else out
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        batches, rows = np.divmod(wanted - self._starts[shards], RECORDS_PER_BATCH)
        places = list(zip(shards.tolist(), batches.tolist(), rows.tolist(), strict=True))
        for position, (shard, batch, row) in enumerate(places):
            # All are asked for before the first is waited for.
            part = None if parts is None or self.strict else int(parts[position])
            (self._mapped.get(shard) or self._map(shard)).prefetch(batch, row, part)
        for position, (shard, batch, row) in enumerate(places):
            record = self._mapped[shard].batches[batch][row]
            if self.strict and zlib.crc32(record) != self._crc32[wanted[position]]:
                key = self.keys_of(wanted[[position]])[0]
                file = self.path / shard_name(shard)
                raise DamagedError(f"{file}: record {key} is damaged; {_REPAIR}")
            out[position] = record if parts is None else record[parts[position]]
        return out

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *self.shard_sizes])[:-1].astype(np.int64)

    def _map(self, shard: int) -> "_Mapped":
        """Map the data of a shard, batch by batch; threads that do it at once all do the same.

        Raises:
            DamagedError: If it is not the shard that was there when the set was opened.
        """
        entry = self.header["shards"][shard]
        path = self.path / entry["file"]
        try:
            with path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            is_same = len(pages) == entry["bytes"] and entry_of(read_checked(_noted(path))) == entry
        except (OSError, ValueError):
            is_same = False
        if not is_same:
            raise DamagedError(
                f"{path}: was damaged, removed or replaced since the set was opened; run again, or "
                f"if that does not help {_REPAIR}"
            )
        left, batches = entry["num_records"], []
        for offset in entry["offsets"]:
            num = min(left, RECORDS_PER_BATCH)
            batches.append(np.ndarray((num, *self.shape), self.dtype, pages, offset))
            left -= num
        return self._mapped.setdefault(shard, _Mapped(pages, entry["offsets"], batches))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header, "strict": self.strict, "_mapped": {}}


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
    header = {"format": 1} if _is_of_first_format(file) else read_checked(file)
    if header["format"] != FORMAT:
        raise ValueError(
            f"{file}: the shards are of format {header['format']}, this version reads {FORMAT}; "
            f"delete {path} and run the stage that makes it again"
        )
    return header


def _is_of_first_format(file: Path) -> bool:
    """Tell a header of the first format, which had no checksum, from a damaged one."""
    try:
        value = json.loads(file.read_bytes())
        return "shards" in value and not {"format", _CHECKSUM} & value.keys()
    except (ValueError, TypeError, AttributeError):
        return False


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


def entry_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the header says of a shard, from what its writer noted."""
    beside = ("lines", "rejects")
    return {name: value for name, value in summary.items() if name not in beside}


def _noted(shard: Path) -> Path:
    return shard.with_suffix(".json")
