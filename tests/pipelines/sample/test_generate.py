"""Samples are functions of their number: of nothing else, in any split."""

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.data.pixels import quantise
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig
from selfdistill.draws import Draws
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.registry import build_method
from selfdistill.pipelines.sample import output
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.pipelines.sample.generate import generate_samples
from selfdistill.pipelines.sample.grid import labelled_grid


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, network, method):
    torch.manual_seed(0)
    built = build_method(network, method)
    for layer in (built.average.dit_layer, built.average.velocity_out):
        torch.nn.init.normal_(layer.modulation.weight, std=0.1)
    torch.nn.init.normal_(built.average.velocity_out.linear.weight, std=0.1)
    path = tmp_path_factory.mktemp("checkpoint")
    return Checkpoint.write(
        path, built, network_config=network, method_config=method, about={"nimg": 0}
    )


def config(**changes):
    values = {
        "solver": "euler", "num_steps": 3, "timestep_shift": 1.0, "guidance": 2.0,
        "guidance_interval": (0.0, 1.0), "seed": 4,
        "num_images": 22, "repeats": 1, "batch_size": 6, "shard_size": 8,
    }  # fmt: skip
    return SampleConfig.model_validate(values | changes)


def pixels(shards):
    return shards.read(np.arange(len(shards)))


def test_image_i_has_class_i_mod_k_and_its_own_noise(checkpoint, images, one_rank, tmp_path):
    samples = generate_samples(checkpoint, images, config(), one_rank, tmp_path)
    assert len(samples) == 22
    assert samples.shape == (16, 16, 3)
    assert samples.labels.tolist() == [i % 5 for i in range(22)]
    assert samples.shard_sizes == [8, 8, 6]
    method = checkpoint.load(torch.device("cpu"))
    eps = Draws(4, torch.tensor([13])).normal("sample", *method.noise_shape())
    x = method.sample(eps, torch.tensor([3]), config(), Draws(4, torch.tensor([13])))
    expected = quantise(x)[0].numpy().astype(int)
    assert np.abs(samples.read([13])[0].astype(int) - expected).max() <= 1


def test_repeats_are_sets_with_the_same_classes_and_noise_of_their_own(
    checkpoint, images, one_rank, tmp_path
):
    repeats = config(num_images=7, repeats=3)
    samples = generate_samples(checkpoint, images, repeats, one_rank, tmp_path)
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 0, 1] * 3
    assert len(np.unique(pixels(samples).reshape(21, -1), axis=0)) == 21
    first = generate_samples(checkpoint, images, config(num_images=7), one_rank, tmp_path / "one")
    difference = np.abs(pixels(samples)[:7].astype(int) - pixels(first).astype(int))
    assert difference.max() <= 1


def test_batches_and_shards_do_not_matter(checkpoint, images, one_rank, tmp_path):
    one = generate_samples(checkpoint, images, config(), one_rank, tmp_path / "one")
    two = generate_samples(
        checkpoint, images, config(batch_size=5, shard_size=22), one_rank, tmp_path / "two"
    )
    difference = np.abs(pixels(one).astype(int) - pixels(two).astype(int))
    assert difference.max() <= 1  # a rounding at the edge of a grey level
    assert (difference > 0).mean() < 0.01


def test_two_ranks_write_the_bytes_of_one(checkpoint, images, one_rank, tmp_path, monkeypatch):
    """With one thread each: how many threads share a product decides the order of its sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = generate_samples(checkpoint, images, config(), one_rank, tmp_path / "one")
    torch.set_num_threads(before)
    two = generate_samples(
        checkpoint, images, config(), DistributedConfig(device="cpu", num_ranks=2), tmp_path / "two"
    )
    digests = [[entry["sha256"] for entry in s.header["shards"]] for s in (one, two)]
    assert digests[0] == digests[1]


def test_a_killed_job_goes_on_at_the_first_missing_shard(
    checkpoint, images, one_rank, tmp_path, monkeypatch
):
    whole = generate_samples(checkpoint, images, config(), one_rank, tmp_path / "whole")

    class Killed(BaseException):
        pass

    appended = []
    append = output.ShardWriter.append

    def stop(self, key, label, row):
        if len(appended) == 12:
            raise Killed
        appended.append(key)
        append(self, key, label, row)

    monkeypatch.setattr(output.ShardWriter, "append", stop)
    with pytest.raises(Killed):
        generate_samples(checkpoint, images, config(), one_rank, tmp_path / "broken")
    (directory,) = [path for path in (tmp_path / "broken").iterdir() if path.is_dir()]
    assert [file.name for file in directory.glob("*.arrow")] == ["shard-00000.arrow"]
    assert not list(directory.glob(".*.tmp"))

    again = []
    monkeypatch.setattr(
        output.ShardWriter,
        "append",
        lambda self, key, label, row: again.append(key) or append(self, key, label, row),
    )
    resumed = generate_samples(checkpoint, images, config(), one_rank, tmp_path / "broken")
    assert again == [f"{i:08d}" for i in range(8, 22)]
    assert [e["sha256"] for e in resumed.header["shards"]] == [
        e["sha256"] for e in whole.header["shards"]
    ]


def test_the_header_says_where_the_samples_come_from(checkpoint, images, one_rank, tmp_path):
    samples = generate_samples(checkpoint, images, config(), one_rank, tmp_path)
    about = Shards.open(samples.path).header["about"]
    assert about["checkpoint"] == checkpoint.about["sha256"]
    assert about["sample"]["guidance"] == 2.0
    assert about["quantisation"] == "floor(clip(127.5 x + 128, 0, 255))"
    assert about["nfe"] == 3


def test_the_grid_shows_samples_beside_the_name_of_their_class(
    checkpoint, images, one_rank, tmp_path
):
    samples = generate_samples(checkpoint, images, config(), one_rank, tmp_path)
    grid = labelled_grid(samples)
    assert grid.mode == "RGB"
    cell = 64
    margin = grid.width - 10 * (cell + 2)
    second_of_class_3 = (margin + cell + 2, 2 + 3 * (cell + 2))
    shown = grid.crop(
        (*second_of_class_3, second_of_class_3[0] + cell, second_of_class_3[1] + cell)
    )
    image = Image.fromarray(samples.read([8])[0]).resize((cell, cell), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(shown), np.asarray(image))
    name = np.asarray(grid.crop((0, second_of_class_3[1], margin, second_of_class_3[1] + cell)))
    assert (name < 128).any()
