"""Raw image files in, numbers and pictures of a row out, through a real Kedro session."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from PIL import Image

from selfdistill.methods.release import Release

BOUNDS = {"dsd_s": 0.80, "dsd_m": 0.80, "dsd_b": 0.85}  # class_accuracy, guided
SHARE_OF_NOISE = 0.1


def run(project, conf, *pipelines, **options):
    bootstrap_project(project)
    with KedroSession.create(project, env="tiny", conf_source=str(conf.path)) as session:
        session.run(pipeline_names=list(pipelines), **options)


def test_a_row_of_a_few_steps_makes_every_artefact(project, conf):
    sampling = {"num_steps": 2, "num_images": 20, "batch_size": 10, "shard_size": 10}
    row = {
        "network": {"width": 32, "depth": 3},
        "train": {"total_nimg": 256, "log_nimg": 128, "checkpoint_nimg": 128},
        "samplings": {"plain": sampling, "unshifted": sampling, "guided": sampling},
    }
    written = yaml.safe_load((conf.path / "tiny/parameters/dsd.yml").read_text())
    row["sweep"] = {"points": dict.fromkeys(written["dsd_s"]["sweep"]["points"], sampling)}
    conf.change("tiny/parameters/dsd.yml", {"dsd_s": row})
    run(project, conf, "dsd_s")

    reporting = conf.data / "08_reporting"
    manifest = json.loads((conf.data / "03_primary/digits_32/images/manifest.json").read_text())
    assert manifest["num_records"] == 1_797
    assert manifest["num_rejects"] == 1
    rebuilt = json.loads((reporting / "dsd_s/reconstruction/metrics.json").read_text())
    assert set(rebuilt["metrics"]) == {"psnr"}
    assert rebuilt["protocol"]["num_samples"] == manifest["num_records"]
    assert Release.open(reporting / "dsd_s/release").sample([3], num_steps=1).shape == (
        1,
        32,
        32,
        3,
    )
    for sampling_name in ("plain", "guided"):
        metrics = json.loads((reporting / "dsd_s" / sampling_name / "metrics.json").read_text())
        assert set(metrics["metrics"]) == {"fd_tiny", "class_accuracy"}
        assert metrics["protocol"]["num_samples"] == 20
        assert Image.open(reporting / "dsd_s" / sampling_name / "grid.png").width > 600
        npz = np.load(conf.data / "07_model_output" / "dsd_s" / sampling_name / "samples.npz")
        assert npz["arr_0"].shape == (20, 32, 32, 3)
    for picture in ("sheet.png", "curves.png"):
        assert Image.open(reporting / "dsd" / picture).width > 0
    assert "dsd_s" in (reporting / "dsd" / "table.html").read_text()
    with (reporting / "dsd" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12  # three rows: three samplings and the reconstruction
    assert [line["fid_paper"] for line in lines][-4:] == ["4.25", "", "3.35", ""]
    for metric in ("fid", "sfid", "inception_score"):  # nobody measured these here
        assert all(line[f"{metric}_ours"] == "" for line in lines)
        assert all(line[f"{metric}_difference"] == "" for line in lines)
    assert [line["row"] for line in lines if line["fd_tiny"]] == ["dsd_s"] * 3

    # Another row, a finer table and a sweep need nothing of what is there made again.
    checkpoint = conf.data / "06_models/dsd_s/checkpoint/weights.safetensors"
    before = checkpoint.stat().st_mtime_ns
    run(project, conf, "report")
    run(project, conf, "sweep_dsd_s")
    guided = reporting / "dsd_s/guided/metrics.json"
    shutil.rmtree(guided.parent)
    run(project, conf, "dsd_s", only_missing_outputs=True)
    assert guided.is_file()
    run(project, conf, "dsd_s", from_nodes=["dsd_s.guided.sample"])
    assert checkpoint.stat().st_mtime_ns == before
    sweep = json.loads((reporting / "dsd_s/sweep.json").read_text())
    assert sweep["metric"] == "fd_tiny"
    scales = [point["guidance"] for point in sweep["points"].values()]
    assert scales == [1.25, 1.5, 2.0, 3.0, 4.0] * 2
    found = {name: point["metrics"]["fd_tiny"] for name, point in sweep["points"].items()}
    assert sweep["best"] == min(found, key=found.get)
    assert sweep["guidance"] == sweep["points"][sweep["best"]]["guidance"]
    assert Image.open(reporting / "dsd_s/sweep.png").width > 0


@pytest.mark.slow
@pytest.mark.parametrize("row", ["dsd_s", "dsd_m", "dsd_b"])
def test_a_tiny_row_learns_the_digits(project, conf, row):
    """With guidance, 4 of 5 samples are the digit asked for, at a tenth of noise's distance."""
    run(project, conf, row)
    file = conf.data / "08_reporting" / row / "guided" / "metrics.json"
    result = json.loads(file.read_text())
    assert result["metrics"]["class_accuracy"] >= BOUNDS[row]
    noise = result["baselines"]["fd_tiny"]["noise"]
    assert result["metrics"]["fd_tiny"] <= SHARE_OF_NOISE * noise
