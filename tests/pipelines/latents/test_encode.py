import numpy as np
import pytest
import torch

from selfdistill.data.config import LatentsConfig
from selfdistill.data.latents import CONVENTIONS
from selfdistill.data.loader import Loader
from selfdistill.distributed_config import DistributedConfig
from selfdistill.networks.vae import VAE
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.latents.encode import latents_job


@pytest.fixture(scope="module")
def vae():
    return VAEConfig(
        weights="random",
        seed=0,
        architecture={
            "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4
        },
        batch_size=7,
    )  # fmt: skip


def config(**changes):
    values = {"vae": "random", "convention": "sd", "mirrored": True, "dtype": "float32"}
    return LatentsConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def latents(images, vae, one_rank, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    return latents_job(images, config(), vae, one_rank).build(scratch)


def test_latents_lie_row_by_row_and_shard_by_shard_beside_their_images(images, latents):
    assert latents.keys == images.keys
    assert latents.labels.tolist() == images.labels.tolist()
    assert latents.shard_sizes == images.shard_sizes
    assert (latents.shape, latents.dtype) == ((2, 8, 2, 2), np.float32)


def test_both_orientations_are_the_moments_that_the_vae_gives(images, latents, vae):
    network, convention = VAE(vae), CONVENTIONS["sd"]
    rows = np.array([0, 21, 39])
    x = torch.from_numpy(images.read(rows)).permute(0, 3, 1, 2).float()
    ways = [network.encode(way, convention) for way in (x, x.flip(-1))]
    torch.testing.assert_close(
        torch.from_numpy(latents.read(rows)), torch.stack(ways, dim=1), atol=1e-5, rtol=1e-5
    )


def test_half_precision_and_one_orientation_are_the_same_numbers_rounded(
    images, latents, vae, one_rank, tmp_path
):
    half = latents_job(images, config(dtype="float16", mirrored=False), vae, one_rank)
    shards = half.build(tmp_path)
    assert (shards.shape, shards.dtype) == ((1, 8, 2, 2), np.float16)
    rows = np.arange(len(images))
    np.testing.assert_allclose(shards.read(rows), latents.read(rows)[:, :1], rtol=1e-3, atol=1e-6)


def test_another_convention_is_another_set_because_the_vae_is_fed_otherwise(
    images, latents, vae, one_rank, tmp_path
):
    other = latents_job(images, config(convention="edm2"), vae, one_rank).build(tmp_path)
    assert other.about["convention"] == "edm2"
    assert not np.allclose(other.read([0]), latents.read([0]), atol=1e-3)


def test_two_ranks_encode_the_same_latents(images, latents, vae, tmp_path):
    two = DistributedConfig(device="cpu", num_ranks=2)
    shards = latents_job(images, config(), vae, two).build(tmp_path)
    rows = np.arange(len(images))
    np.testing.assert_allclose(shards.read(rows), latents.read(rows), rtol=1e-4, atol=1e-5)


def test_what_a_narrow_type_cannot_hold_is_refused_and_named(
    images, vae, one_rank, tmp_path, monkeypatch
):
    from selfdistill.networks.vae import VAE

    encode = VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda *arguments: encode(*arguments) + 7e4)
    with pytest.raises(ValueError, match="of image 000 is not finite, or too large for float16"):
        latents_job(images, config(dtype="float16"), vae, one_rank).build(tmp_path)


def test_a_loader_draws_from_what_the_stage_made(latents):
    loader = Loader(latents, None, seed=0, flip=True, device=torch.device("cpu"))
    batch = loader.load(np.arange(12))
    assert batch.images.shape == (12, 4, 2, 2)
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images, loader.load(np.arange(12)).images)


def test_images_that_have_no_whole_latents_are_refused_before_any_work(
    shard_set, vae, one_rank, tmp_path
):
    odd = shard_set(tmp_path / "odd", np.zeros((3, 12, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="images of 12 pixels are no multiple of the VAE's"):
        latents_job(odd, config(), vae, one_rank)
