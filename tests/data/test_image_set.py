import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from selfdistill.data.image_set import open_image_set
from selfdistill.data.shard_writer import ShardWriter, finalize

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


def shard_set(path, rows):
    with ShardWriter(path, 0, rows.shape[1:], str(rows.dtype)) as writer:
        for index, row in enumerate(rows):
            writer.append(str(index), -1, row)
    finalize(
        path, num_shards=1, shape=rows.shape[1:], dtype=str(rows.dtype), about={"quantisation": "q"}
    )


def folder(path, rows):
    path.mkdir()
    for index, row in enumerate(rows):
        Image.fromarray(row).save(path / f"{index}.png")


KINDS = {"set": shard_set, "folder": folder, "set.NPZ": lambda path, rows: npz(path, rows)}


def npz(path, rows):
    with path.open("wb") as file:
        np.savez(file, rows)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_images_are_read_however_they_are_kept(tmp_path, name):
    path = tmp_path / name
    KINDS[name](path, PIXELS)
    images = open_image_set(path)
    assert (images.path, images.shape, len(images)) == (path, (8, 6, 3), 5)
    assert np.array_equal(images.read([3, 0, 3]), PIXELS[[3, 0, 3]])
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [-1] * 5
    assert images.about == ({"quantisation": "q"} if name == "set" else {})
    assert int(images.fingerprint, 16)


@pytest.mark.parametrize("name", KINDS)
def test_fewer_than_two_images_are_refused(tmp_path, name):
    KINDS[name](tmp_path / name, PIXELS[:1])
    with pytest.raises(ValueError, match=rf"{name}: 1 images, but a covariance needs two images"):
        open_image_set(tmp_path / name)


def test_statistics_alone_are_no_images(tmp_path):
    np.savez(tmp_path / "reference.npz", mu=np.zeros(2048))
    with pytest.raises(ValueError, match=r"reference\.npz: holds statistics \(mu\) but no images"):
        open_image_set(tmp_path / "reference.npz")


def test_nothing_and_other_files_name_the_three_kinds(tmp_path):
    kinds = r"name a folder of images, the directory of a shard set .* or an \.npz file"
    with pytest.raises(FileNotFoundError, match=f"nowhere: nothing here; {kinds}"):
        open_image_set(tmp_path / "nowhere")
    (tmp_path / "samples.tar").touch()
    with pytest.raises(ValueError, match=rf"samples\.tar: not a set of images; {kinds}"):
        open_image_set(tmp_path / "samples.tar")


@pytest.mark.parametrize(
    "rows", [PIXELS.astype(np.float16), PIXELS[..., 0], PIXELS.transpose(0, 3, 1, 2)]
)
def test_shards_of_anything_but_rgb_pixels_are_refused(tmp_path, rows):
    shard_set(tmp_path / "set", np.ascontiguousarray(rows))
    with pytest.raises(ValueError, match=r"set: the shards hold .* but images are uint8 of shape"):
        open_image_set(tmp_path / "set")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"shards": 3}', "\xff"])
def test_a_manifest_of_something_else_is_named(tmp_path, text):
    folder(tmp_path / "set", PIXELS)
    (tmp_path / "set" / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"set: its manifest\.json is not that of a shard set"):
        open_image_set(tmp_path / "set")


def test_an_unfinished_or_damaged_shard_set_is_not_taken_for_an_empty_folder(tmp_path):
    shard_set(tmp_path / "set", PIXELS)
    shard = tmp_path / "set" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00000\.arrow: is truncated"):
        open_image_set(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="no finished shard set here"):
        open_image_set(tmp_path / "set")


def test_opening_a_set_needs_no_torch():
    code = "import sys, selfdistill.data.image_set; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
