"""Raw images in the layout of EDM's and StyleGAN's dataset_tool.py: PNGs, and labels beside them.

00000/img00000000.png, ...   the images, in a folder or an uncompressed zip
dataset.json                 {"labels": [["00000/img00000000.png", 6], ...]}, or null for labels
"""

import json
import struct
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.data.file_reader import (
    UNLABELLED,
    ClassImages,
    FileReader,
    images_below,
    is_image,
)
from selfdistill.data.raw import digest_of

_LABELS = "dataset.json"
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature, lengths of name and extra field


@dataclass(frozen=True, eq=False)
class LabelledReader(FileReader):
    """Images in the order of their names, whose classes are said elsewhere."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of keys, sizes and labels: the same for a folder and a zip."""
        return digest_of([super().fingerprint, self.labels.tobytes().hex()])


def scan_edm(path: Path) -> LabelledReader:
    """Index a folder or a zip that dataset_tool.py made; classes are called by their numbers.

    Without labels all images are of one class.

    Args:
        path: The folder or the zip.

    Raises:
        ValueError: If there are no images, the zip is compressed or damaged, or the labels are not
            one class index an image, from 0 on without gaps.
    """
    if path.is_dir():
        root, images, about = path, images_below(path), path / _LABELS
        text = about.read_bytes() if about.is_file() else None
    else:
        root = path.parent
        images, text = _in_zip(path)
    if not images.keys:
        raise ValueError(f"{path}: holds no images; name what dataset_tool.py made")
    labels = _labels(path, text, images.keys)
    names = [UNLABELLED] if labels is None else [str(k) for k in range(int(labels.max()) + 1)]
    reader = LabelledReader.of(root, [UNLABELLED], [images])
    return replace(
        reader,
        class_names=names,
        labels=reader.labels if labels is None else labels,
        archives=None if path.is_dir() else [path.name] * len(names),
    )


def _in_zip(path: Path) -> tuple[ClassImages, bytes | None]:
    """Return the images in a zip, sorted by name, and the text of the labels."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = sorted(
                (one for one in archive.infolist() if is_image(one.filename)),
                key=lambda one: one.filename,
            )
            text = archive.read(_LABELS) if _LABELS in archive.namelist() else None
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a whole zip: {error}; make or copy it again") from error
    packed = [one for one in found if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1]
    if packed:
        raise ValueError(
            f"{path}: {packed[0].filename} is compressed, and dataset_tool.py compresses nothing; "
            "unpack the zip and name the folder"
        )
    offsets = np.zeros(len(found), np.int64)
    size = path.stat().st_size
    with path.open("rb") as file:
        for place in sorted(range(len(found)), key=lambda k: found[k].header_offset):
            member = found[place]
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                raise ValueError(
                    f"{path}: {member.filename} is not where the zip says; copy it again"
                )
            _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            offsets[place] = file.tell() + name_length + extra_length
            if offsets[place] + member.file_size > size:
                raise ValueError(f"{path}: {member.filename} goes on behind its end; copy it again")
    sizes = np.array([one.file_size for one in found], np.int64)
    return ClassImages([one.filename for one in found], offsets, sizes), text


def _labels(path: Path, text: bytes | None, keys: list[str]) -> np.ndarray | None:
    """Return the class index of each image, (N,) int32; None if there are no labels."""
    if text is None:
        return None
    try:
        pairs = json.loads(text)["labels"]
        given: dict[Any, Any] = dict(pairs or ())
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: {_LABELS} is not as dataset_tool.py writes it ({error!r}); make it again"
        ) from error
    if not given:
        return None
    for name, label in given.items():
        if type(label) is not int or not 0 <= label < len(given):
            raise ValueError(
                f"{path}: {_LABELS} gives {name} the label {label!r}, which is no class index; "
                "set labels to null for images without classes"
            )
    if absent := sorted(map(str, given.keys() - set(keys))):
        raise ValueError(
            f"{path}: {len(absent)} of the {len(given)} labelled images are absent, {absent[0]} "
            "for one; copy it again"
        )
    if without := [key for key in keys if key not in given]:
        raise ValueError(
            f"{path}: {_LABELS} has no label for {len(without)} images, {without[0]} for one; "
            "label all of them, or none"
        )
    labels = np.array([given[key] for key in keys], np.int32)
    counts = np.bincount(labels)
    if (empty := np.flatnonzero(counts == 0)).size:
        raise ValueError(
            f"{path}: {len(empty)} of {len(counts)} classes hold no images, class {empty[0]} for "
            "one; take the whole data set"
        )
    return labels
