import numpy as np
import pytest
import torch

from selfdistill.data.tokens import packed_dim, unpack_int8
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import publish_directory
from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.teacher_config import FeatureCacheConfig, TeacherConfig
from selfdistill.pipelines.features.encode import features_job


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
        cache=FeatureCacheConfig(mirrored=True, dtype="float16"),
    )


def encode_images(images, teacher, machine, scratch):
    return features_job(images, teacher, machine).build(scratch)


def cached(teacher, **cache):
    return teacher.model_copy(update={"cache": teacher.cache.model_copy(update=cache)})


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


def test_one_orientation_is_the_image_as_it_is(images, encoded, teacher, one_rank, tmp_path):
    upright = encode_images(images, cached(teacher, mirrored=False), one_rank, tmp_path)
    assert upright.shape == (1, 4, 32)
    rows = np.arange(len(images))
    np.testing.assert_array_equal(upright.read(rows), encoded.read(rows)[:, :1])


def test_tokens_in_eight_bits_are_off_by_half_a_level_of_their_own_scale(
    images, encoded, teacher, one_rank, tmp_path
):
    packed = encode_images(images, cached(teacher, dtype="int8"), one_rank, tmp_path)
    assert packed.shape == (2, 4, packed_dim(32))
    assert packed.dtype == np.int8
    rows = np.arange(len(images))
    tokens, exact = (torch.from_numpy(shards.read(rows)) for shards in (packed, encoded))
    off = (unpack_int8(tokens) - exact.float()).abs()
    level = exact.float().abs().amax(-1, keepdim=True) / 127
    assert (off <= 0.51 * level + 4e-3).all()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_token_that_is_not_finite_is_refused_and_its_image_named(
    images, teacher, one_rank, tmp_path, monkeypatch, dtype
):
    forward = Teacher.forward

    def broken(self, x):
        tokens = forward(self, x)
        tokens[min(2, len(tokens) - 1), 1, 3] = torch.nan
        return tokens

    monkeypatch.setattr(Teacher, "forward", broken)
    with pytest.raises(ValueError, match="what was made of image 002 is not finite"):
        encode_images(images, cached(teacher, dtype=dtype), one_rank, tmp_path)
    assert not list(tmp_path.rglob("*.arrow"))


def test_features_that_are_published_are_not_made_again(
    images, teacher, one_rank, tmp_path, monkeypatch
):
    place = tmp_path / "features"
    publish_directory(encode_images(images, teacher, one_rank, tmp_path / "scratch").path, place)
    monkeypatch.setattr("selfdistill.data.encoding.run_job", None)
    job = features_job(images, teacher, one_rank)
    assert job.build(tmp_path / "scratch", place).path == place
    job.build_share(tmp_path / "scratch", 0, 2, place)
    other = features_job(images, cached(teacher, mirrored=False), one_rank)
    with pytest.raises(TypeError):
        other.build(tmp_path / "scratch", place)


def test_weights_from_a_file_and_the_same_weights_by_name_are_one_job(
    images, teacher, one_rank, tmp_path
):
    torch.save(Teacher(teacher, 16).vit.state_dict(), tmp_path / "weights.pth")
    file = teacher.model_copy(update={"weights": str(tmp_path / "weights.pth"), "seed": None})
    assert features_job(images, file, one_rank).name == features_job(images, teacher, one_rank).name


def test_other_batch_size_goes_on_with_the_same_job(images, teacher, one_rank):
    larger = teacher.model_copy(update={"batch_size": 64})
    names = {features_job(images, each, one_rank).name for each in (teacher, larger)}
    assert len(names) == 1
    packed = cached(teacher, dtype="int8")
    assert features_job(images, packed, one_rank).name not in names
