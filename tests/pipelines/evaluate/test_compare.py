"""`kedro run --pipelines=compare` on what users bring, through a real Kedro session."""

import json
import subprocess
import sys

import numpy as np
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    grey = (load_digits().images[:240] * (255 / 16)).astype(np.uint8)
    return np.repeat(np.kron(grey, np.ones((1, 4, 4), np.uint8))[..., None], 3, axis=-1)


@pytest.fixture
def compare(project, conf):
    def compare(samples, reference, repeats=1):
        brought = {"samples": str(samples), "reference": str(reference), "repeats": repeats}
        bootstrap_project(project)
        with KedroSession.create(
            project, env="tiny", conf_source=str(conf.path), runtime_params={"compare": brought}
        ) as session:
            session.run(pipeline_names=["compare"])
        return json.loads((conf.data / "08_reporting/compare/metrics.json").read_text())

    return compare


def bring(kind, images, folder, shard_set):
    """Write images in one of the forms that users bring, and return its path."""
    if kind == "npz":
        np.savez(folder / "images.npz", images)
        return folder / "images.npz"
    if kind == "shards":
        return shard_set(folder / "shards", images).path
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    return folder


def test_npz_folder_and_shards_of_the_same_images_score_the_same(
    compare, digits, tmp_path, shard_set
):
    results = []
    for kind in ("npz", "folder", "shards"):
        paths = []
        for name, half in (("samples", digits[::2]), ("reference", digits[1::2])):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            paths.append(bring(kind, half, folder, shard_set))
        results.append(compare(*paths))
    first, *others = (result["metrics"] for result in results)
    assert set(first) == {"fd_tiny"}
    assert others == [first, first]
    protocols = [result["protocol"] for result in results]
    assert {protocol["num_samples"] for protocol in protocols} == {120}
    assert {protocol["reference"]["num_images"] for protocol in protocols} == {120}
    assert len({protocol["reference"]["images"] for protocol in protocols}) == 3


def test_repeats_are_a_parameter(compare, digits, tmp_path):
    np.savez(tmp_path / "a.npz", digits)
    result = compare(tmp_path / "a.npz", tmp_path / "a.npz", repeats=4)
    assert len(result["repeats"]["fd_tiny"]) == 4
    assert result["protocol"]["num_samples"] == 60


def test_a_reference_of_another_size_is_refused(compare, digits, tmp_path):
    np.savez(tmp_path / "a.npz", digits)
    np.savez(tmp_path / "b.npz", digits[:, :16, :16])
    with pytest.raises(
        ValueError, match=r"samples are \[32, 32, 3\], the real images \[16, 16, 3\]"
    ):
        compare(tmp_path / "a.npz", tmp_path / "b.npz")


def test_samples_and_reference_must_be_named(compare):
    with pytest.raises(ValueError, match="say what to compare"):
        compare("", "")


def test_what_cannot_be_measured_is_said_in_one_line(project, conf, digits, tmp_path):
    np.savez(tmp_path / "float.npz", digits.astype(np.float32))
    paths = f"compare.samples={tmp_path}/float.npz,compare.reference={tmp_path}/float.npz"
    done = subprocess.run(
        [
            sys.executable, "-m", "selfdistill", "run", "--env=tiny", "--pipelines=compare",
            f"--params={paths}", f"--conf-source={conf.path}",
        ],
        cwd=project, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "float.npz" in line
    assert "float32" in line
    assert "Traceback" not in done.stderr
