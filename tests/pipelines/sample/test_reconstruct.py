"""Reconstructions are the images of the set, in its order, through the averaged autoencoder."""

import numpy as np
import pytest
import torch

from selfdistill.data.pixels import dequantise, quantise
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.registry import build_method
from selfdistill.pipelines.sample.config import ReconstructionConfig
from selfdistill.pipelines.sample.reconstruct import reconstruct_images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, network, method):
    torch.manual_seed(0)
    built = build_method(network, method)
    path = tmp_path_factory.mktemp("checkpoint")
    return Checkpoint.write(
        path, built, network_config=network, method_config=method, about={"nimg": 0}
    )


def config(**changes):
    values = {"data": "minute", "batch_size": 6, "shard_size": 16}
    return ReconstructionConfig.model_validate(values | changes)


def test_image_i_is_the_real_image_i_decoded(checkpoint, images, one_rank, tmp_path):
    found = reconstruct_images(checkpoint, images, config(), one_rank, tmp_path)
    assert len(found) == len(images)
    assert found.labels.tolist() == images.labels.tolist()
    assert found.keys == images.keys
    method = checkpoint.load(torch.device("cpu"))
    x0 = dequantise(torch.from_numpy(images.read([7])))
    expected = quantise(method.decode(method.encode(x0)))[0].numpy().astype(int)
    assert np.abs(found.read([7])[0].astype(int) - expected).max() <= 1
    assert found.about["images"] == images.fingerprint


def test_batches_do_not_matter(checkpoint, images, one_rank, tmp_path):
    one, two = (
        reconstruct_images(checkpoint, images, config(batch_size=size), one_rank, tmp_path / name)
        for name, size in (("one", 16), ("two", 5))
    )
    everything = np.arange(len(images))
    a, b = (shards.read(everything).astype(int) for shards in (one, two))
    assert np.abs(a - b).max() <= 1


def test_a_killed_job_goes_on_at_the_first_missing_shard(
    checkpoint, images, one_rank, tmp_path, monkeypatch
):
    whole = reconstruct_images(checkpoint, images, config(), one_rank, tmp_path / "whole")
    from selfdistill.methods.dsd import DSD

    original, calls = DSD.decode, []

    def killed(self, z0):
        calls.append(len(z0))
        if len(calls) == 5:  # in the second shard
            raise KeyboardInterrupt
        return original(self, z0)

    with monkeypatch.context() as patch:
        patch.setattr(DSD, "decode", killed)
        with pytest.raises(KeyboardInterrupt):
            reconstruct_images(checkpoint, images, config(), one_rank, tmp_path / "broken")
    found = reconstruct_images(checkpoint, images, config(), one_rank, tmp_path / "broken")
    assert found.header["shards"] == whole.header["shards"]


def test_a_method_without_an_encoder_is_named(checkpoint, images, one_rank, tmp_path, monkeypatch):
    from selfdistill.pipelines.sample import reconstruct

    monkeypatch.setattr(reconstruct, "Autoencoder", int)
    with pytest.raises(ValueError, match="has no encoder of its own: remove the row's"):
        reconstruct_images(checkpoint, images, config(), one_rank, tmp_path)
