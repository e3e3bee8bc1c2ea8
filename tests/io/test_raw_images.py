import pytest
from kedro.io import DatasetError

from selfdistill.io.raw_images import RawImagesDataset

FILES = [("a/1.png", b"one"), ("a/2.png", b"two"), ("b/1.png", b"three")]


@pytest.fixture
def entry(tmp_path):
    return RawImagesDataset(path=str(tmp_path / "raw"), layout="class_folders")


def test_saved_files_are_read_back(entry):
    assert not entry.exists()
    entry.save(iter(FILES))
    assert entry.exists()
    assert [(image.key, image.data) for image in entry.load().iterate()] == FILES


def test_saving_replaces_what_stood_there(entry, tmp_path):
    entry.save(FILES)
    entry.save([("c/1.png", b"four")])
    assert entry.load().class_names == ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_failed_save_leaves_the_old_files_and_nothing_else(entry, tmp_path):
    entry.save(FILES)

    def broken():
        yield "c/1.png", b"four"
        raise RuntimeError("stop")

    with pytest.raises(DatasetError, match="stop"):
        entry.save(broken())
    assert len(entry.load()) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/tmp/out.png"])
def test_path_out_of_the_folder_is_refused(entry, tmp_path, name):
    with pytest.raises(DatasetError, match="leads out of"):
        entry.save([*FILES, (name, b"x")])
    assert list(tmp_path.iterdir()) == []


def test_archive_is_not_written(tmp_path):
    entry = RawImagesDataset(path=str(tmp_path / "x.tar"), layout="imagenet_tar")
    with pytest.raises(DatasetError, match="layout imagenet_tar cannot be written"):
        entry.save(FILES)


def test_missing_images_are_reported_with_their_path(entry, tmp_path):
    with pytest.raises((DatasetError, FileNotFoundError), match=str(tmp_path / "raw")):
        entry.load()
