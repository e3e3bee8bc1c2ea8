"""Readers of raw images by layout: class folders, ImageNet's tars, Hugging Face Parquet, COCO."""

from pathlib import Path
from typing import Literal, get_args

from selfdistill.data.coco_reader import scan_coco
from selfdistill.data.file_reader import scan_class_folders, scan_imagenet_tar
from selfdistill.data.parquet_reader import ParquetReader
from selfdistill.data.raw import Reader

Layout = Literal["class_folders", "imagenet_tar", "parquet", "coco"]


def open_reader(path: Path, layout: Layout, split: str | None = None) -> Reader:
    """Scan raw images.

    Args:
        path: A folder of class folders; ILSVRC2012_img_train.tar or a folder of class tars; a
            Parquet file or a folder of them; a folder of COCO's images and annotations.
        layout: Which of the four it is.
        split: Parquet files whose names start with this, e.g. "train"; of COCO, e.g. "val2014";
            the other layouts are one split each.

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
    if layout == "coco":
        if split is None:
            raise ValueError(f"{path}: layout coco needs a split, e.g. split: val2014")
        return scan_coco(path, split)
    if split is not None:
        raise ValueError(f"{path}: layout {layout} has no splits; remove split: {split}")
    return scan_class_folders(path) if layout == "class_folders" else scan_imagenet_tar(path)
