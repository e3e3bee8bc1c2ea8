"""The rows of SSD, through real Kedro sessions: shrunk to seconds, on every kind of start."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfdistill.data.shards import Shards
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.release import Release

FEW = [
    "dit_xl_256",  # pixels, trained here, published weights in base
    "issd_dit_xl_256_n10",
    "pd_dit_xl_256_n10",
    "issd_pd_dit_xl_256_n10",
    "repa_sit_xl_256",  # velocities, stochastic samples
    "eq10_repa_sit_xl_256_sde",
    "dit_xl_512",  # latents of a VAE, ancestral samples
    "ssd_dit_xl_512_n10",
    "sd15",  # prompts, trained here, on two datasets
    "issd_sd15_n10",
    "dsd_b",  # its own latents
    "few_steps_dsd_b",
    "issd_dsd_b_10",
]


def test_rows_of_every_kind_run_from_start_to_release(conf, rows):
    rows.shrink("dsd", "ssd")
    rows.run(*FEW)
    rows.check("ssd", [row for row in FEW if row != "dsd_b"])
    models = conf.data / "06_models"

    # The lineage: what a checkpoint started from is written in it.
    for row, start in (("issd_pd_dit_xl_256_n10", "pd_dit_xl_256_n10"), ("issd_dsd_b_10", "dsd_b")):
        of = json.loads((models / start / "checkpoint/checkpoint.json").read_text())
        tuned = json.loads((models / row / "checkpoint/checkpoint.json").read_text())
        assert tuned["inputs"]["start"] == of["sha256"]
    adopted = load_file(models / "few_steps_dsd_b/checkpoint/weights.safetensors")
    base = load_file(models / "dsd_b/checkpoint/weights.safetensors")
    assert all(
        torch.equal(value, base[name.replace("trunk.", "average.", 1)])
        for name, value in adopted.items()
        if name.startswith("trunk.")
    )

    # A prompt is the name of a class, and a release reads any.
    release = Release.open(conf.data / "08_reporting/issd_sd15_n10/release")
    assert release.class_names == []
    samples = Shards.open(conf.data / "07_model_output/issd_sd15_n10/n10/samples")
    again = release.sample([samples.class_names[label] for label in samples.labels[:4]])
    assert np.abs(again.astype(int) - samples.read(range(4)).astype(int)).max() <= 1
    with pytest.raises(ValueError, match="this network reads: labels must be a list of texts"):
        release.sample([3, 1])
    card = (conf.data / "08_reporting/issd_sd15_n10/release/README.md").read_text()
    assert (
        'sample(["a red bus", "two dogs"])' in card or "sample(['a red bus', 'two dogs'])" in card
    )
    assert "does not publish the recipe" in card
    assert "| n10_2017 |" in card
    assert "| digits_8_centred |" in card

    # On DSD encoder, decoder and trunk stay as they were, to the bit.
    before = Checkpoint.open(models / "dsd_b/checkpoint").load(torch.device("cpu")).average
    after = Checkpoint.open(models / "issd_dsd_b_10/checkpoint").load(torch.device("cpu"))
    own = before.state_dict()
    assert all(torch.equal(own[name], value) for name, value in after.trunk.state_dict().items())
    head = after.released().velocity_out.state_dict()
    assert any(not torch.equal(before.velocity_out.state_dict()[name], head[name]) for name in head)

    table = (conf.data / "08_reporting/ssd/table.md").read_text()
    assert "issd_pd_dit_xl_256_n10" in table
    assert "dsd_s" not in table


def test_a_release_of_dit_has_the_published_keys(conf, rows, tmp_path):
    rows.shrink("ssd")
    rows.run("dit_xl_256")
    weights = load_file(conf.data / "08_reporting/dit_xl_256/release/weights.safetensors")
    assert {"pos_embed", "x_embedder.proj.weight", "blocks.0.attn.qkv.weight"} < weights.keys()
    torch.save(weights, tmp_path / "published.pt")
    entry = {"weights.dit_xl_256": {
        "type": "selfdistill.io.asset.AssetDataset", "url": None, "sha256": None,
        "filepath": str(tmp_path / "published.pt"),
    }}  # fmt: skip
    conf.change("tiny/catalog.yml", entry)
    start = {"start": {"weights": "dit_xl_256"}, "train": None}
    conf.change("tiny/parameters/ssd.yml", {"dit_xl_256": start})
    rows.run("dit_xl_256")
    adopted = load_file(conf.data / "08_reporting/dit_xl_256/release/weights.safetensors")
    assert all(torch.equal(value, adopted[name]) for name, value in weights.items())


@pytest.mark.slow
def test_every_row_and_figure_runs_in_tiny(rows):
    names = rows.shrink("dsd", "ssd")["ssd"]
    figures = rows.figures(names)
    assert {"few_steps_dit", "few_steps_dsd", "dynamics_dit", "one_step_dit"} < {*figures}
    rows.run("dsd_b", *names, *figures)
    rows.check("ssd", names)
    rows.check_figures(figures)
