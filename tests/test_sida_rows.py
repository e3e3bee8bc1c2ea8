"""The rows of SiD, SiDA and SiD2A, through real Kedro sessions: shrunk to seconds."""

import json

import pytest

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


@pytest.mark.slow
def test_every_row_runs_in_tiny(rows):
    names = rows.shrink("dsd", "ssd", "sida")["sida"]
    rows.run(*names)
    rows.check("sida", names)
