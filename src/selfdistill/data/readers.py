"""Readers of raw images by layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from selfdistill.data.cifar_reader import scan_cifar10
from selfdistill.data.coco_reader import scan_coco
from selfdistill.data.edm_reader import scan_edm
from selfdistill.data.file_reader import scan_class_folders, scan_imagenet_tar, scan_unlabelled
from selfdistill.data.parquet_reader import ParquetReader
from selfdistill.data.raw import Reader

Layout = Literal["class_folders", "imagenet_tar", "parquet", "coco", "unlabelled", "edm", "cifar10"]

_WHOLE: Mapping[str, Callable[[Path], Reader]] = {
    "class_folders": scan_class_folders,
    "imagenet_tar": scan_imagenet_tar,
    "unlabelled": scan_unlabelled,
    "edm": scan_edm,
}
# And a split that an error gives for an example.
_SPLIT: Mapping[str, tuple[Callable[[Path, str], Reader], str]] = {
    "coco": (scan_coco, "val2014"),
    "cifar10": (scan_cifar10, "train"),
}


def open_reader(path: Path, layout: Layout, split: str | None = None) -> Reader:
    """Scan raw images.

    Args:
        path: A folder of class folders; ILSVRC2012_img_train.tar or a folder of class tars; a
            Parquet file or a folder of them; a folder of COCO's images and annotations; a folder
            with images anywhere below it, all of one class; a zip or a folder that EDM's
            dataset_tool.py made; one of CIFAR-10's own archives, or what it holds.
        layout: Which of the seven it is.
        split: Parquet files whose names start with this, e.g. "train"; of COCO, e.g. "val2014"; of
            CIFAR-10's archives, "train" or "test"; the other layouts are one split each.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If what is there has another layout or no images, or a class has none.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(get_args(Layout))}")
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no raw images here; put them there, or name their place in the catalog entry"
        )
    if layout == "parquet":
        return ParquetReader.scan(path, split)
    if layout in _SPLIT:
        scan_split, example = _SPLIT[layout]
        if split is None:
            raise ValueError(f"{path}: layout {layout} needs a split, e.g. split: {example}")
        return scan_split(path, split)
    if split is not None:
        raise ValueError(f"{path}: layout {layout} has no splits; remove split: {split}")
    return _WHOLE[layout](path)
