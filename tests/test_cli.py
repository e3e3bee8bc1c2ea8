"""A user's mistake stops before expensive work, with one message that names it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from selfdistill.data.shards import ShardWriter, finalize


@pytest.fixture
def kedro(project, conf):
    def kedro(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "selfdistill", *arguments, f"--conf-source={conf.path}"],
            cwd=project,
            capture_output=True,
            text=True,
        )

    return kedro


@pytest.fixture
def refused(kedro):
    def refused(*arguments, message):
        done = kedro("run", *arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert message in line
        return done

    return refused


def test_a_wrong_key(conf, refused):
    conf.change("tiny/parameters/dsd.yml", {"dsd_b": {"train": {"learning_rate": 1.0}}})
    refused("--env=tiny", "--pipelines=dsd_b", message="dsd_b.train.learning_rate: unknown key")


def test_a_wrong_type(conf, refused):
    conf.change("tiny/parameters/dsd.yml", {"dsd_b": {"network": {"width": "wide"}}})
    refused("--env=tiny", "--pipelines=dsd_b", message="dsd_b.network.width: ")


def test_an_unknown_row(refused):
    refused("--env=tiny", "--pipelines=dsd_x", message="Failed to find the pipeline named 'dsd_x'")


def test_an_extractor_that_is_not_built_yet(refused):
    refused("--pipelines=dsd_b", message="inception_2015")


def test_a_missing_image_folder(conf, refused, tmp_path):
    conf.change("base/globals.yml", {"imagenet": str(tmp_path / "nowhere")})
    refused("--pipelines=preprocess_imagenet_256", message=str(tmp_path / "nowhere"))


def test_an_empty_class_folder(conf, refused, tmp_path):
    conf.change("base/globals.yml", {"imagenet": str(tmp_path / "raw")})
    for name in ("n1", "n2"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "raw" / "n1" / "a.png")
    refused("--pipelines=preprocess_imagenet_64", message="1 of 2 classes hold no images: n2")


def test_a_truncated_shard_is_named_and_what_was_made_stays(conf, refused):
    images = conf.data / "03_primary" / "digits_32" / "images"
    with ShardWriter(images, 0, (32, 32, 3), "uint8") as writer:
        writer.append("0", 0, np.zeros((32, 32, 3), np.uint8))
    finalize(images, num_shards=1, shape=(32, 32, 3), dtype="uint8")
    shard = images / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    before = sorted(file.name for file in images.iterdir())
    refused("--env=tiny", "--pipelines=features", message=f"{shard}: shard is truncated")
    assert sorted(file.name for file in images.iterdir()) == before


def test_a_defect_of_ours_keeps_its_traceback(conf, kedro):
    done = kedro("run", "--env=tiny", "--pipelines=dsd_x", "--traceback")
    assert "Traceback" in done.stderr
