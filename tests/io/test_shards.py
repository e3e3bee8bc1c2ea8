import base64
import inspect
import io
from pathlib import Path

import numpy as np
import pytest
from kedro.io import DatasetError
from PIL import Image

from selfdistill.data.shard_writer import ShardWriter, finalize
from selfdistill.data.shards import Shards
from selfdistill.io.shards import ScratchDataset, ShardsDataset


def build(directory: Path, shape: tuple[int, ...], dtype: str, num_records: int = 40) -> Shards:
    with ShardWriter(directory, 0, shape, dtype) as writer:
        for number in range(num_records):
            writer.append(f"k{number}", 0, np.full(shape, number, dtype))
    return finalize(directory, num_shards=1, shape=shape, dtype=dtype)


def test_saving_moves_the_set_and_loading_opens_it(tmp_path):
    entry = ShardsDataset(path=str(tmp_path / "set"))
    assert not entry.exists()
    entry.save(build(tmp_path / "scratch", (4, 4, 3), "uint8"))
    assert entry.exists()
    assert not (tmp_path / "scratch").exists()
    assert entry.load().path == tmp_path / "set"
    assert len(entry.load()) == 40


def test_set_without_its_header_does_not_exist(tmp_path):
    build(tmp_path, (4, 4, 3), "uint8")
    (tmp_path / "manifest.json").unlink()
    assert not ShardsDataset(path=str(tmp_path)).exists()


def test_saving_again_replaces_the_set(tmp_path):
    entry = ShardsDataset(path=str(tmp_path / "set"))
    entry.save(build(tmp_path / "scratch", (4, 4, 3), "uint8"))
    entry.save(build(tmp_path / "scratch", (4, 4, 3), "uint8", num_records=7))
    assert len(entry.load()) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_saving_in_place_keeps_the_set(tmp_path):
    entry = ShardsDataset(path=str(tmp_path / "set"))
    entry.save(build(tmp_path / "set", (4, 4, 3), "uint8"))
    assert len(entry.load()) == 40


def preview_kind(entry: ShardsDataset) -> str:
    """The kind of a preview as Kedro-Viz finds it."""
    return inspect.signature(entry.preview).return_annotation.__name__


@pytest.mark.parametrize("num_records", [40, 3])
def test_images_are_previewed_as_a_picture(tmp_path, num_records):
    build(tmp_path, (4, 4, 3), "uint8", num_records)
    entry = ShardsDataset(path=str(tmp_path))
    assert preview_kind(entry) == "ImagePreview"
    picture = Image.open(io.BytesIO(base64.b64decode(entry.preview())))
    assert picture.size == (512, 256)
    assert picture.getpixel((64 * 2 + 5, 5)) == (2, 2, 2)


def test_anything_else_is_previewed_as_a_table(tmp_path):
    build(tmp_path, (2, 8), "float16")
    entry = ShardsDataset(path=str(tmp_path))
    assert preview_kind(entry) == "TablePreview"
    table = entry.preview()
    assert table["columns"] == ["key", "label", "source", "crc32", "shard", "record", "reason"]
    assert len(table["data"]) == 10


def test_set_that_is_not_there_has_no_preview(tmp_path):
    assert not hasattr(ShardsDataset(path=str(tmp_path / "set")), "preview")


def test_scratch_is_made_when_it_is_loaded(tmp_path):
    entry = ScratchDataset(path=str(tmp_path / "a" / "b"))
    assert not entry.exists()
    assert entry.load() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert entry.exists()


def test_scratch_is_not_saved(tmp_path):
    with pytest.raises(DatasetError, match="no node returns it"):
        ScratchDataset(path=str(tmp_path)).save(tmp_path)
