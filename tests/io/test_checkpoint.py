import numpy as np
import pytest
import torch
from kedro.io import DatasetError

from selfdistill.io.checkpoint import AdmNpzDataset, CheckpointDataset
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.registry import build_method


def test_npz_is_what_adms_evaluator_reads(images, tmp_path):
    entry = AdmNpzDataset(path=str(tmp_path / "samples.npz"))
    entry.save(images)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], images.read(np.arange(len(images))))
        assert np.array_equal(file["arr_1"], images.labels)
    assert not list(tmp_path.glob(".*"))


def test_the_same_samples_give_the_same_npz_bytes(images, tmp_path):
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for file in files:
        AdmNpzDataset(path=str(file)).save(images)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_export_cannot_be_read_back(tmp_path):
    with pytest.raises(DatasetError, match="is an export"):
        AdmNpzDataset(path=str(tmp_path / "samples.npz")).load()


def test_a_checkpoint_moves_into_place_and_loads_the_same_weights(network, method, tmp_path):
    torch.manual_seed(0)
    built = build_method(network, method)
    made = Checkpoint.write(
        tmp_path / "made", built, network_config=network, method_config=method, about={"nimg": 7}
    )
    entry = CheckpointDataset(path=str(tmp_path / "models" / "row"))
    assert not entry.exists()
    entry.save(made)
    assert entry.exists()
    assert not made.path.exists()
    loaded = entry.load()
    assert loaded.about["nimg"] == 7
    method_again = loaded.load(torch.device("cpu"))
    for name, value in built.state_dict().items():
        assert torch.equal(value, method_again.state_dict()[name]), name


def test_a_new_checkpoint_replaces_the_old_one(network, method, tmp_path):
    entry = CheckpointDataset(path=str(tmp_path / "row"))
    for nimg in (1, 2):
        torch.manual_seed(nimg)
        entry.save(
            Checkpoint.write(
                tmp_path / f"made{nimg}",
                build_method(network, method),
                network_config=network,
                method_config=method,
                about={"nimg": nimg},
            )
        )
    assert entry.load().about["nimg"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["row"]


def test_an_absent_checkpoint_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no finished checkpoint here"):
        CheckpointDataset(path=str(tmp_path / "nowhere")).load()
