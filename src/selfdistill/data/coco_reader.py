"""Raw images with captions, in COCO's layout: each image is a class, whose name they are."""

import json
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.data.file_reader import ClassImages, FileReader
from selfdistill.data.raw import digest_of


@dataclass(frozen=True, eq=False)
class CaptionReader(FileReader):
    """Images, one a class; the name of a class has a line for each caption."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of keys, sizes and captions."""
        return digest_of([super().fingerprint, *self.class_names])


def scan_coco(root: Path, split: str) -> CaptionReader:
    """Index `root/<split>/*.jpg` with the captions of `root/annotations/captions_<split>.json`.

    An image's captions, five or so, stand in the order of their ids, and images in that of their
    file names.

    Args:
        root: Folder of both.
        split: E.g. "val2014".

    Raises:
        FileNotFoundError: If there is no such file of captions, or images of it are absent.
        ValueError: If the file is not one of captions, or an image has none.
    """
    file = root / "annotations" / f"captions_{split}.json"
    captions = _captions(file)
    folder = root / split
    sizes = {
        entry.name: entry.stat().st_size
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.is_file()
    }
    if absent := sorted(captions.keys() - sizes.keys()):
        raise FileNotFoundError(
            f"{folder}: {len(absent)} of the {len(captions)} images of {file.name} are absent, "
            f"{absent[0]} for one; unpack {split}.zip there"
        )
    names = sorted(captions)
    images = [
        ClassImages([f"{split}/{name}"], np.zeros(1, np.int64), np.array([sizes[name]], np.int64))
        for name in names
    ]
    return CaptionReader.of(root, [captions[name] for name in names], images)


def _captions(file: Path) -> dict[str, str]:
    """Return the captions of each image, one a line, by its file name."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no captions here; unpack COCO's annotations there, or correct the split"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = {image["id"]: image["file_name"] for image in content["images"]}
        found: dict[Any, list[str]] = {}
        for one in sorted(content["annotations"], key=itemgetter("id")):
            found.setdefault(one["image_id"], []).append(" ".join(one["caption"].split()))
        texts = {key: "\n".join(filter(None, lines)) for key, lines in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not a file of COCO's captions, or damaged ({error!r}); fetch it again"
        ) from error
    if without := sorted(name for key, name in images.items() if not texts.get(key)):
        raise ValueError(f"{file}: {len(without)} images have no caption, {without[0]} for one")
    return {name: texts[key] for key, name in images.items()}
