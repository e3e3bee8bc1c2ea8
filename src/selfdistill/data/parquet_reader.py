"""Raw images in Parquet files, laid out as Hugging Face's `datasets` writes them."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

from selfdistill.data.raw import RawImage, digest_of, unreadable

_IMAGES_PER_READ = 64
_NAME_OF_SPLIT = re.compile(r"(.+)-\d+-of-\d+\.parquet")
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")


@dataclass(frozen=True)
class _ParquetFile:
    name: str
    size: int
    num_images: int

    def key(self, number: int) -> str:
        return f"{self.name.removesuffix('.parquet')}/{number:06d}"

    def source(self, number: int) -> str:
        return f"{self.name}:{number}"


class _Columns(NamedTuple):
    """How a file is laid out; all files of a dataset agree in it."""

    image: str
    label: str
    class_names: list[str] | None  # None: the file does not name them


@dataclass(frozen=True, eq=False)
class ParquetReader:
    """Images in Parquet files as `datasets` writes them: a struct column of them, one of labels.

    Attributes:
        root: Folder of the files.
        class_names: Names in the order of the labels.
        column: Name of the image column.
        files: The files in order.
        labels: Class indices of this reader's images, (N,), int64.
        first: Place of its first image among the images of all files.
    """

    root: Path
    class_names: list[str]
    column: str
    files: tuple[_ParquetFile, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    first: int = 0

    @classmethod
    def scan(cls, path: Path, split: str | None) -> Self:
        """Index a file, or the files of a folder that belong to a split.

        Raises:
            ValueError: If there are no such files or several splits to choose from, a column is
                missing, the files differ in their columns or classes, or a label is null,
                negative or beyond the class names.
        """
        root = path if path.is_dir() else path.parent
        indexed = [_index(root, name) for name in _parquet_names(path, split)]
        files, columns, labels = zip(*indexed, strict=True)
        _check_files_agree(root, files, columns)
        every = np.concatenate(labels)
        if not len(every):
            raise ValueError(f"{path}: the Parquet files hold no images; fetch them again")
        names = columns[0].class_names or [str(label) for label in range(every.max() + 1)]
        if every.min() < 0 or every.max() >= len(names):
            raise ValueError(
                f"{path}: labels range over [{every.min()}, {every.max()}], but there are "
                f"{len(names)} classes; use a split with labels: test splits often have none"
            )
        return cls(root, names, columns[0].image, files, every)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of class names, file names, sizes, numbers of images and labels."""
        facts = [f"{file.name}\0{file.size}\0{file.num_images}" for file in self.files]
        return digest_of([*self.class_names, *facts, self.labels.tobytes().hex()])

    def iterate(self) -> Iterator[RawImage]:
        """Read the images in order, a row group at most in memory.

        Raises:
            OSError: If a file cannot be read, or holds fewer images than when it was scanned.
        """
        begin, end, passed = self.first, self.first + len(self), 0
        for file in self.files:
            start, stop = max(begin - passed, 0), min(end - passed, file.num_images)
            for number, data in self._images(file, start, stop):
                label = int(self.labels[passed + number - self.first])
                yield RawImage(file.key(number), label, file.source(number), data)
            passed += file.num_images

    def part(self, start: int, stop: int) -> Self:
        """Return a reader of images [start, stop) only."""
        return replace(self, labels=self.labels[start:stop], first=self.first + start)

    def _images(self, file: _ParquetFile, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Read images [start, stop) of a file: their numbers and bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if start >= stop:
            return
        path = self.root / file.name
        try:
            with pq.ParquetFile(path) as source:
                yield from _rows(source, f"{self.column}.bytes", start, stop)
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(path, error) from error


def _rows(
    source: "pq.ParquetFile", column: str, start: int, stop: int
) -> Iterator[tuple[int, bytes]]:
    """Read rows [start, stop) of a column of bytes in a struct: their numbers and bytes."""
    sizes = [source.metadata.row_group(group).num_rows for group in range(source.num_row_groups)]
    bounds = np.cumsum([0, *sizes])
    if bounds[-1] < stop:
        raise OSError("it holds fewer images than when it was scanned")
    groups = np.flatnonzero((bounds[1:] > start) & (bounds[:-1] < stop))
    for group in groups.tolist():  # one by one: pyarrow keeps what it has read of several
        number = int(bounds[group])
        for batch in source.iter_batches(_IMAGES_PER_READ, row_groups=[group], columns=[column]):
            for value in batch.column(0).field("bytes"):
                if start <= number < stop:
                    yield number, value.as_py() or b""
                number += 1


def _parquet_names(path: Path, split: str | None) -> list[str]:
    """Return the names of the Parquet files of a split, sorted.

    Raises:
        ValueError: If there are none, or several splits and none is asked for.
    """
    every = [path.name] if path.is_file() else sorted(file.name for file in path.iterdir())
    every = [name for name in every if name.endswith(".parquet") and not name.startswith(".")]
    names = [name for name in every if split is None or name.startswith((f"{split}-", f"{split}."))]
    if not names:
        raise ValueError(
            f"{path}: no Parquet files{f' of split {split}' if split else ''}; found: "
            f"{', '.join(every[:5]) or 'none at all'}"
        )
    splits = {match[1] for name in names if (match := _NAME_OF_SPLIT.fullmatch(name))}
    if split is None and len(splits) > 1:
        raise ValueError(
            f"{path}: holds the splits {', '.join(sorted(splits))}; choose one with split: in the "
            "catalog entry"
        )
    return names


def _index(root: Path, name: str) -> tuple[_ParquetFile, _Columns, np.ndarray]:
    """Return what a Parquet file says of itself, and its labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / name
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a whole Parquet file, fetch it again: {error}") from error
    with file:
        columns = _columns(path, file.schema_arrow)
        labels = file.read(columns=[columns.label]).column(0)
    if labels.null_count:
        raise ValueError(
            f"{path}: column {columns.label} is null for {labels.null_count} images; "
            "use a split with labels"
        )
    indexed = _ParquetFile(name, path.stat().st_size, len(labels))
    return indexed, columns, labels.to_numpy().astype(np.int64)


def _columns(path: Path, schema: "pa.Schema") -> _Columns:
    """Find the columns of images and labels; what has none, or of other types, is refused."""
    import pyarrow as pa

    image = next((column for column in _IMAGE_COLUMNS if column in schema.names), None)
    label = next((column for column in _LABEL_COLUMNS if column in schema.names), None)
    if image is None or label is None:
        raise ValueError(
            f"{path}: needs a column {' or '.join(_IMAGE_COLUMNS)} and a column "
            f"{' or '.join(_LABEL_COLUMNS)}; found: {', '.join(schema.names)}"
        )
    if not pa.types.is_struct(kind := schema.field(image).type) or "bytes" not in kind.names:
        raise ValueError(f"{path}: column {image} is {kind}, but must be a struct with bytes")
    if not pa.types.is_integer(kind := schema.field(label).type):
        raise ValueError(f"{path}: column {label} is {kind}, but must be an integer")
    return _Columns(image, label, _class_names(schema.metadata, label))


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """Return the class names in the metadata that `datasets` writes; None if there are none."""
    about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
    return None if names is None else list(names)


def _check_files_agree(
    root: Path, files: Sequence[_ParquetFile], columns: Sequence[_Columns]
) -> None:
    """Refuse files that differ in their columns or classes; the first that differs is named."""
    for file, theirs in zip(files, columns, strict=True):
        for (what, expected), (_, found) in zip(_facts(columns[0]), _facts(theirs), strict=False):
            if found != expected:
                raise ValueError(
                    f"{root / file.name}: {what} is {found!r}, but {expected!r} in "
                    f"{files[0].name}; keep the files of one dataset here, or write them anew with "
                    "equal columns and class names"
                )


def _facts(columns: _Columns) -> Iterator[tuple[str, object]]:
    names = columns.class_names or []
    yield "the image column", columns.image
    yield "the label column", columns.label
    yield "the number of class names", len(names)
    yield from ((f"the name of class {label}", name) for label, name in enumerate(names))
