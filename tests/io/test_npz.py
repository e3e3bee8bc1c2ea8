import numpy as np
import pytest
from kedro.io import DatasetError

from selfdistill.io import npz
from selfdistill.io.npz import AdmNpzDataset


def test_npz_is_what_adms_evaluator_reads_however_many_pieces_it_takes(
    images, monkeypatch, tmp_path
):
    monkeypatch.setattr(npz, "_RECORDS_PER_WRITE", 16)  # 40 images: 3 pieces
    entry = AdmNpzDataset(path=str(tmp_path / "samples.npz"))
    entry.save(images)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], images.read(np.arange(len(images))))
        assert np.array_equal(file["arr_1"], images.labels)
    assert not list(tmp_path.glob(".*"))


def test_of_repeated_sets_the_first_is_exported(shard_set, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    samples = shard_set(tmp_path / "samples", pixels, sample={"num_images": 4, "repeats": 3})
    AdmNpzDataset(path=str(tmp_path / "samples.npz")).save(samples)
    with np.load(tmp_path / "samples.npz") as file:
        assert np.array_equal(file["arr_0"], pixels[:4])
        assert np.array_equal(file["arr_1"], samples.labels[:4])


def test_the_same_samples_give_the_same_npz_bytes(images, tmp_path):
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for file in files:
        AdmNpzDataset(path=str(file)).save(images)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_export_cannot_be_read_back(tmp_path):
    with pytest.raises(DatasetError, match="is an export"):
        AdmNpzDataset(path=str(tmp_path / "samples.npz")).load()
