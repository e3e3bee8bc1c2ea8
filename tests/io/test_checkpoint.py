import pytest
import torch
from kedro.io import DatasetError

from selfdistill.io.checkpoint import CheckpointDataset
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.registry import build_method


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
