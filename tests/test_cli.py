"""A user's mistake stops before expensive work, with one message that names it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from selfdistill.config import ProjectConfig
from selfdistill.data.shard_writer import ShardWriter, finalize


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
def refused(kedro, conf):
    def refused(*arguments, message):
        before = set(conf.data.rglob("*"))
        done = kedro("run", *arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert message in line
        made = [path for path in conf.data.rglob("*") if path.is_file() and path not in before]
        assert not [path for path in made if path.name != ".lock"]  # no work was begun
        return done

    return refused


def test_a_wrong_key_is_named_by_its_path(conf, refused):
    conf.change("tiny/parameters/dsd.yml", {"dsd_b": {"train": {"learning_rate": 1.0}}})
    refused("--env=tiny", "--pipelines=dsd_b", message="dsd_b.train.learning_rate: unknown key")


def test_a_wrong_type_is_named_by_its_path(conf, refused):
    conf.change("tiny/parameters/dsd.yml", {"dsd_b": {"network": {"width": "wide"}}})
    refused("--env=tiny", "--pipelines=dsd_b", message="dsd_b.network.width: ")


def test_an_unknown_row_is_named(refused):
    refused("--env=tiny", "--pipelines=dsd_x", message="Failed to find the pipeline named 'dsd_x'")


def test_weights_that_cannot_be_fetched_stop_the_run_at_once(conf, refused, tmp_path):
    """Before a week of training, not after it; the message says what to put where."""
    file = tmp_path / "assets" / "reference.npz"
    nowhere = {"url": "http://127.0.0.1:9/reference.npz", "filepath": str(file)}
    conf.change("base/catalog.yml", {"references.adm_imagenet_256": nowhere})
    refused("--pipelines=dsd_b", message=str(file))
    refused("--pipelines=dsd_b", message="http://127.0.0.1:9/reference.npz")


def test_a_missing_image_folder_is_named(conf, refused, tmp_path):
    conf.change("base/globals.yml", {"imagenet": str(tmp_path / "nowhere")})
    refused("--pipelines=preprocess_imagenet_256", message=str(tmp_path / "nowhere"))


def test_an_empty_class_folder_is_named(conf, refused, tmp_path):
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
    refused("--env=tiny", "--pipelines=features", message=f"{shard}: is truncated")
    assert sorted(file.name for file in images.iterdir()) == before


def test_a_mistake_shows_where_it_was_found_when_asked(kedro):
    done = kedro("run", "--env=tiny", "--pipelines=dsd_x", "--traceback")
    assert "Traceback" in done.stderr


def test_a_defect_keeps_its_traceback_whatever_its_kind():
    """A ValueError of torch or NumPy under our feet is no message to a user."""
    from click.testing import CliRunner

    from selfdistill import cli

    def broken(*_args, **_kwargs):
        return np.zeros(3) + np.zeros(4)

    def mistaken(*_args, **_kwargs):
        ProjectConfig.from_parameters({})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.kedro_run, "callback", broken)
        result = CliRunner().invoke(cli.cli, ["run"])
        assert isinstance(result.exception, ValueError)
        patch.setattr(cli.kedro_run, "callback", mistaken)
        result = CliRunner().invoke(cli.cli, ["run"])
        assert isinstance(result.exception, SystemExit)
        settings = "compare, distributed, evaluation, figures, plan, reconstruction, teachers, vaes"
        assert f"conf: parameters {settings} are missing" in result.output
