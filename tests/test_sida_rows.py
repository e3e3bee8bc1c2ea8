"""The rows of SiD, SiDA and SiD2A, through real Kedro sessions: shrunk to seconds."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

FEW = [
    "edm_cifar10_cond",  # trained here, published weights in base
    "sid_cifar10_cond_alpha_12",
    "sida_cifar10_cond",
    "sid2a_cifar10_cond_alpha_10",  # starts as SiD's generator, learns from the teacher
    "edm_imagenet_64",  # ADM, stochastic samples
    "edm2_xs",  # latents of a VAE
    "edm2_xs_guided",  # by another network
    "sida_edm2_xs",
]


def test_rows_of_every_kind_run_from_teacher_to_release(conf, rows):
    rows.shrink("sida")
    rows.run(*FEW)
    rows.check("sida", FEW)

    def about(row):
        file = conf.data / "06_models" / row / "checkpoint/checkpoint.json"
        return json.loads(file.read_text())

    teacher, sid = about("edm_cifar10_cond"), about("sid_cifar10_cond_alpha_12")
    both = about("sid2a_cifar10_cond_alpha_10")["inputs"]
    assert sid["inputs"]["start"] == teacher["sha256"]
    assert both["start"] == sid["sha256"]
    assert both["taught_by"] == teacher["sha256"]
    samples = conf.data / "07_model_output/edm2_xs_guided/n32/samples"
    made = json.loads((samples / "manifest.json").read_text())
    assert made["about"]["guide_sha256"] == about("edm2_xs")["sha256"]
    table = (conf.data / "08_reporting/sida/table.md").read_text()
    assert "sid2a_cifar10_cond_alpha_10" in table


def test_a_lineage_stands_in_one_graph_and_one_table(conf, rows):
    """From 249 steps by way of 10 to one: each from the checkpoint before, through the catalog."""
    rows.shrink("dsd", "ssd", "sida")
    rows.run("dsd_b_to_one_step")
    rows.check("sida", ["sida_dsd_b"])
    models = conf.data / "06_models"
    tuned, one_step = (
        json.loads((models / row / "checkpoint/checkpoint.json").read_text())
        for row in ("issd_dsd_b_10", "sida_dsd_b")
    )
    assert one_step["inputs"]["start"] == tuned["sha256"]
    assert one_step["inputs"]["taught_by"] == tuned["inputs"]["start"]
    weights = load_file(models / "sida_dsd_b/checkpoint/weights.safetensors")
    vit = load_file(models / "dsd_b/checkpoint/weights.safetensors")
    heads = ("velocity_out", "dit_layer", "time_embedding", "class_embedding")
    kept = {name for name in weights if name.startswith("trunk.") and heads[0] not in name}
    assert kept
    for name in kept:
        if name.split(".")[1] not in heads:
            assert torch.equal(weights[name], vit[name.replace("trunk.", "average.", 1)]), name
    written = csv.DictReader(
        (conf.data / "08_reporting/dsd_b_to_one_step/tradeoff.csv").open(encoding="utf-8")
    )
    lines = {line["sampling"]: line for line in written}
    nfe = {name: int(line["nfe"]) for name, line in lines.items()}
    assert nfe == {
        "dsd_b.plain": 25, "few_steps_dsd_b.n10": 10, "issd_dsd_b_10.n10": 10,
        "sida_dsd_b.one_step": 1,
    }  # fmt: skip
    assert all(float(line["seconds_per_image"]) > 0 for line in lines.values())
    assert all(np.isfinite(float(line["fd_tiny"])) for line in lines.values())


@pytest.mark.slow
def test_every_row_runs_in_tiny(rows):
    names = rows.shrink("dsd", "ssd", "sida")["sida"]
    rows.run(*names)
    rows.check("sida", names)
