import numpy as np
import pytest
import torch

from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.config import TeacherConfig
from selfdistill.networks.dinov3 import Teacher
from selfdistill.pipelines.features.encode import encode_images


@pytest.fixture(scope="module")
def teacher():
    return TeacherConfig(
        architecture="vit_small_patch16_dinov3",
        weights="random",
        overrides={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        seed=0,
        patch_size=8,
        dim=32,
        batch_size=7,
    )


@pytest.fixture(scope="module")
def encoded(images, teacher, one_rank, tmp_path_factory):
    return encode_images(images, teacher, one_rank, tmp_path_factory.mktemp("scratch"))


def test_features_lie_row_by_row_and_shard_by_shard_beside_their_images(images, encoded):
    assert encoded.keys == images.keys
    assert encoded.labels.tolist() == images.labels.tolist()
    assert encoded.shape == (2, 4, 32)
    assert encoded.dtype == np.float16
    assert encoded.shard_sizes == images.shard_sizes


def test_both_orientations_are_the_teachers_tokens(images, encoded, teacher):
    network = Teacher(teacher, 16)
    for row in (0, 21, 39):
        x = torch.from_numpy(images.read([row])).permute(0, 3, 1, 2).float()
        expected = torch.stack((network(x), network(x.flip(-1))), dim=1).half().numpy()
        np.testing.assert_allclose(encoded.read([row]), expected, atol=4e-3)


def test_two_ranks_encode_the_same_features(images, encoded, teacher, tmp_path):
    two = encode_images(images, teacher, DistributedConfig(device="cpu", num_ranks=2), tmp_path)
    rows = np.arange(len(images))
    np.testing.assert_allclose(two.read(rows), encoded.read(rows), atol=4e-3)


def test_only_missing_shards_are_encoded(images, teacher, one_rank, tmp_path):
    first = encode_images(images, teacher, one_rank, tmp_path)
    kept, lost = (first.path / f"shard-0000{shard}.arrow" for shard in (0, 1))
    before = kept.stat().st_mtime_ns
    content = lost.read_bytes()
    lost.unlink()
    encode_images(images, teacher, one_rank, tmp_path)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
