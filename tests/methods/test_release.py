"""What is released encodes, decodes and samples as the checkpoint does, and says when it cannot."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from selfdistill.data.pixels import dequantise, quantise
from selfdistill.diffusion.config import SolverConfig
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method
from selfdistill.methods.release import Release
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.pipelines.sample.generate import generate_samples

SIDE, NUM_CLASSES, TOKENS, CHANNELS = 16, 5, 4, 4
NAMES = [f"class_{label}" for label in range(NUM_CLASSES)]
ABOUT = {
    "nimg": 96, "fingerprint": "f" * 16, "train": {"seed": 0},
    "inputs": {"images": "i" * 16}, "code": {"torch": torch.__version__},
}  # fmt: skip
FILES = ["README.md", "config.json", "weights.safetensors"]


def settings(**changes):
    values = {
        "solver": "euler", "num_steps": 3, "timestep_shift": 1.0, "guidance": 2.0,
        "guidance_interval": (0.0, 1.0), "seed": 0, "num_images": 12, "repeats": 1,
        "batch_size": 12, "shard_size": 12,
    }  # fmt: skip
    return SampleConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, network, method):
    """The averaged network differs from the online one, and its velocity from zero."""
    torch.manual_seed(0)
    built = build_method(network, method)
    for parameter in built.average.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("checkpoint")
    return Checkpoint.write(path, built, network_config=network, method_config=method, about=ABOUT)


def write(path, checkpoint):
    return Release.write(
        path, checkpoint, class_names=NAMES, sampling=settings(), card="# dsd, a card\n"
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory, checkpoint):
    return write(tmp_path_factory.mktemp("released") / "release", checkpoint).path


@pytest.fixture
def copy(tmp_path, checkpoint):
    """A release that a test may damage."""
    return write(tmp_path / "release", checkpoint).path


@pytest.fixture(scope="module")
def dsd(path):
    return Release.open(path)


@pytest.fixture(scope="module")
def photographs():
    return np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), dtype=np.uint8)


def test_three_lines_suffice_in_a_python_that_knows_only_the_package(path, tmp_path):
    """The program must not find the project: it runs elsewhere, with a string for a path."""
    program = (
        "from selfdistill.methods.release import Release\n"
        f"dsd = Release.open({str(path)!r})\n"
        "x = dsd.sample([4, 2]); z = dsd.encode(x); x = dsd.decode(z)\n"
        "print(x.shape, x.dtype, tuple(z.shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == "(2, 16, 16, 3) uint8 (2, 4, 4)"


def test_samples_are_the_rows_samples(dsd, checkpoint, images, one_rank, tmp_path):
    samples = generate_samples(checkpoint, images, settings(), one_rank, tmp_path)
    mine = dsd.sample([i % NUM_CLASSES for i in range(12)])
    assert np.array_equal(mine, samples.read(range(12)))
    assert len(np.unique(mine.reshape(12, -1), axis=0)) == 12


def test_another_seed_is_the_rows_samples_of_that_seed(dsd, checkpoint, images, one_rank, tmp_path):
    config = settings(seed=3, num_images=2)
    samples = generate_samples(checkpoint, images, config, one_rank, tmp_path)
    assert np.array_equal(dsd.sample([0, 1], seed=3), samples.read(range(2)))


def test_changes_overlay_the_default_sampling(dsd, checkpoint, images, one_rank, tmp_path):
    config = settings(guidance=4.0, num_steps=2, num_images=2)
    samples = generate_samples(checkpoint, images, config, one_rank, tmp_path)
    changed = dsd.sample([0, 1], guidance=4.0, num_steps=2)
    assert np.array_equal(changed, samples.read(range(2)))
    assert not np.array_equal(changed, dsd.sample([0, 1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_steps": 0}, "num_steps"), ({"steps": 5}, "steps"), ({"guidance": -1.0}, "guidance")],
)
def test_a_wrong_change_is_named(dsd, changes, message):
    with pytest.raises(ValueError, match=message):
        dsd.sample([0], **changes)


@pytest.mark.parametrize("labels", [[5], [-1], [], [0.5], [[0]], 3])
def test_labels_that_are_no_classes_are_refused(dsd, labels):
    with pytest.raises(ValueError, match="integers from 0 to 4"):
        dsd.sample(labels)


def test_noise_may_be_given_and_must_fit_the_labels(dsd):
    eps = dsd.noise(2, seed=7)
    assert eps.shape == (2, TOKENS, CHANNELS)
    assert np.array_equal(dsd.sample([1, 2], eps=eps), dsd.sample([1, 2], seed=7))
    with pytest.raises(ValueError, match="3 labels and 2 eps"):
        dsd.sample([1, 2, 3], eps=eps)
    with pytest.raises(ValueError, match=r"eps are .* takes floats \['N', 4, 4\]"):
        dsd.sample([1, 2], eps=eps[:, :3])


def test_encode_is_the_averaged_networks(dsd, checkpoint, photographs):
    method = checkpoint.load(torch.device("cpu"))
    expected = method.average.encode(dequantise(torch.from_numpy(photographs)))
    z = dsd.encode(photographs)
    assert z.shape == (7, TOKENS, CHANNELS)
    assert torch.equal(z, expected)
    assert not torch.allclose(z, method.network.encode(dequantise(torch.from_numpy(photographs))))


def test_encode_takes_pixels_and_floats_alike(dsd, photographs):
    pixels = torch.from_numpy(photographs)
    z = dsd.encode(photographs)
    assert torch.equal(dsd.encode(pixels), z)
    assert torch.equal(dsd.encode(dequantise(pixels)), z)
    assert torch.equal(dsd.encode(dequantise(pixels).numpy()), z)


def test_decode_quantises_as_the_samples_are(dsd, checkpoint, photographs):
    method = checkpoint.load(torch.device("cpu"))
    z = dsd.encode(photographs)
    expected = quantise(method.average.decode(method.average.denoise(z)[0])).numpy()
    assert np.array_equal(dsd.decode(z), expected)
    assert np.array_equal(dsd.decode(z.numpy()), expected)


def test_interpolation_ends_at_its_ends_and_stays_normalised(dsd, photographs):
    z = dsd.encode(photographs)
    between = dsd.interpolate(z[0], z[1], 5)
    torch.testing.assert_close(between[[0, -1]], z[:2], rtol=0, atol=1e-2)
    torch.testing.assert_close(
        between.var(-1, correction=0), torch.ones(5, TOKENS), atol=1e-2, rtol=0
    )
    assert dsd.decode(between).shape == (5, SIDE, SIDE, 3)


def test_noise_of_a_network_that_only_samples_has_the_shape_of_its_data(tmp_path):
    """Four images of four channels: what once blended channel by channel."""
    values = {
        "name": "dit", "latent_size": 4, "latent_channels": 4, "patch_size": 2, "width": 16,
        "depth": 1, "num_heads": 2, "num_classes": NUM_CLASSES, "learn_sigma": True,
    }  # fmt: skip
    config = NetworkConfig.model_validate(values)
    ordinary = {"name": "diffusion", "class_dropout": 0.1, "ema_decay": None}
    chosen = MethodConfig.model_validate(ordinary)
    built = build_method(config, chosen)
    about = {"network_config": config, "method_config": chosen, "about": {"nimg": 0}}
    checkpoint = Checkpoint.write(tmp_path / "checkpoint", built, **about)
    sampling = settings(solver="ddim")
    dit = Release.write(
        tmp_path / "release", checkpoint, class_names=NAMES, sampling=sampling, card="# dit\n"
    )
    start, end = dit.noise(2)
    between = dit.interpolate(start, end, 4)
    assert between.shape == (4, 4, 4, 4)
    torch.testing.assert_close(between[1], start + (end - start) / 3)
    with pytest.raises(ValueError, match=r"floats \['N', 4, 4, 4\]"):
        dit.sample([1], eps=start[0])


def test_more_images_than_a_batch_come_back_in_order(dsd, photographs):
    many = np.tile(photographs, (10, 1, 1, 1))
    z = dsd.encode(many)
    assert len(z) == 70
    torch.testing.assert_close(z, dsd.encode(photographs).repeat(10, 1, 1))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), r"\[1, 32, 32, 3\].* takes uint8 \[N, 16, 16, 3\]"),
        (np.zeros((16, 16, 3), np.uint8), "crop and resize"),
        (np.zeros((0, 16, 16, 3), np.uint8), "crop and resize"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "crop and resize"),
        (torch.zeros(1, 16, 16, 3), "crop and resize"),
        (torch.full((1, 3, 16, 16), 255.0), r"\[255, 255\]; give uint8, or x / 127.5 - 1"),
        (torch.full((1, 3, 16, 16), torch.nan), "must be in"),
    ],
)
def test_other_images_are_refused(dsd, images, message):
    with pytest.raises(ValueError, match=message):
        dsd.encode(images)


def test_other_latents_are_refused(dsd):
    with pytest.raises(ValueError, match=r"latents are .*\[1, 4, 5\].*\['N', 4, 4\]"):
        dsd.decode(torch.zeros(1, 4, 5))


def test_the_directory_says_what_it_is(path, checkpoint):
    assert sorted(file.name for file in path.iterdir()) == FILES
    config = json.loads((path / "config.json").read_text())
    assert config["format"] == 2
    assert config["network"] == checkpoint.about["network"]
    assert config["class_names"] == NAMES
    assert set(config["sampling"]) == set(SolverConfig.model_fields)
    assert config["checkpoint"] == checkpoint.about["sha256"]
    assert (config["nimg"], config["fingerprint"]) == (96, "f" * 16)
    release = Release.at(path)
    assert release.card == "# dsd, a card\n"
    assert release.class_names == NAMES
    assert release.sampling.guidance == 2.0


def test_only_the_averaged_network_is_released(path, checkpoint):
    size = (path / "weights.safetensors").stat().st_size
    assert size < 0.6 * (checkpoint.path / "weights.safetensors").stat().st_size


def test_the_same_checkpoint_gives_the_same_bytes(path, copy):
    for name in FILES:
        assert (path / name).read_bytes() == (copy / name).read_bytes(), name


def test_a_release_replaces_the_old_one_and_leaves_nothing_beside_it(copy, checkpoint):
    release = Release.write(copy, checkpoint, class_names=NAMES, sampling=settings(), card="new")
    assert release.card == "new"
    assert [place.name for place in copy.parent.iterdir()] == ["release"]


def test_a_write_that_fails_leaves_the_old_one(copy, checkpoint, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("selfdistill.methods.release.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write(copy, checkpoint)
    assert [place.name for place in copy.parent.iterdir()] == ["release"]
    Release.open(copy)


def test_a_directory_of_something_else_is_not_replaced(tmp_path, checkpoint):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="no release; take another path"):
        write(tmp_path, checkpoint)
    assert [place.name for place in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*run the export stage"):
        Release.open(copy)


def test_damaged_weights_are_named(copy):
    file = copy / "weights.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged.*copy the directory"):
        Release.open(copy)
    assert Release.at(copy).config["nimg"] == 96  # a handle needs no weights


def test_a_damaged_or_foreign_config_is_named(copy):
    file = copy / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 2', '"format": 3'))
    with pytest.raises(ValueError, match=r"config\.json has format 3, this selfdistill reads 2"):
        Release.open(copy)
    file.write_text(text[:-5])
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        Release.open(copy)


def test_opening_leaves_the_random_state_alone(path):
    state = torch.random.get_rng_state()
    Release.open(path)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.gpu
def test_a_gpu_encodes_and_decodes_as_the_cpu_does(dsd, path, photographs):
    on_gpu = Release.open(path, device="cuda")
    z = on_gpu.encode(photographs)
    assert z.is_cuda
    torch.testing.assert_close(z.cpu(), dsd.encode(photographs), rtol=1e-3, atol=1e-3)
    for mine, theirs in (
        (on_gpu.decode(z), dsd.decode(z.cpu())),
        (on_gpu.sample([0, 1]), dsd.sample([0, 1])),
    ):
        assert np.abs(mine.astype(int) - theirs).max() <= 2  # grey levels
