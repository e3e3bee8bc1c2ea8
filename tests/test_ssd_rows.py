"""The rows of SSD, through real Kedro sessions: shrunk to seconds, on every kind of start."""

import json

import numpy as np
import pytest
import torch
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from safetensors.torch import load_file

from selfdistill.data.shards import Shards
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.release import Release

SAMPLING = {"num_images": 20, "batch_size": 10, "shard_size": 10}
TRAIN = {
    "total_nimg": 64, "batch_size": 32, "micro_batch_size": 32, "log_nimg": 32,
    "checkpoint_nimg": 32, "warmup_nimg": 0, "num_probe_images": 8,
}  # fmt: skip
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


def run(project, conf, *pipelines):
    bootstrap_project(project)
    with KedroSession.create(project, env="tiny", conf_source=str(conf.path)) as session:
        session.run(pipeline_names=list(pipelines))


def shrink(conf):
    """Make every row of tiny a matter of seconds, and return the names of SSD's."""
    rows = []
    for file in ("dsd", "ssd"):
        written = yaml.safe_load((conf.path / f"tiny/parameters/{file}.yml").read_text())
        changed = {}
        for name, row in written.items():
            if name.startswith("_"):
                continue
            changed[name] = {"samplings": dict.fromkeys(row["samplings"], SAMPLING)}
            changed[name] |= {"train": TRAIN} if row.get("train") else {}
            if file == "ssd":
                rows.append(name)
        conf.change(f"tiny/parameters/{file}.yml", changed)
    return rows


def check(conf, rows):
    """Every sampling of the rows has samples, as many as asked for, and finite numbers of them."""
    written = yaml.safe_load((conf.path / "tiny/parameters/ssd.yml").read_text())
    base = yaml.safe_load((conf.path / "base/parameters/ssd.yml").read_text())
    cases = {name for name, row in base.items() if "study" in row}  # they are in no table
    for row in rows:
        for sampling in written[row]["samplings"]:
            report = conf.data / "08_reporting" / row / sampling / "metrics.json"
            found = json.loads(report.read_text())
            assert found["protocol"]["num_samples"] == 20, (row, sampling)
            assert np.isfinite(list(found["metrics"].values())).all(), (row, sampling)
        if row in cases:
            continue
        release = Release.open(conf.data / "08_reporting" / row / "release")
        reads = "text" in release.config["network"]
        images = release.sample(["digit_3", "digit_1"] if reads else [3, 1])
        side = 8 if written[row]["data"] == "digits_8" else 32
        assert images.dtype == np.uint8
        assert images.shape == (2, side, side, 3)


def test_rows_of_every_kind_run_from_start_to_release(project, conf):
    shrink(conf)
    run(project, conf, *FEW)
    check(conf, [row for row in FEW if row != "dsd_b"])
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


def test_a_release_of_dit_has_the_published_keys(project, conf, tmp_path):
    shrink(conf)
    run(project, conf, "dit_xl_256")
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
    run(project, conf, "dit_xl_256")
    adopted = load_file(conf.data / "08_reporting/dit_xl_256/release/weights.safetensors")
    assert all(torch.equal(value, adopted[name]) for name, value in weights.items())


@pytest.mark.slow
def test_every_row_runs_in_tiny(project, conf):
    rows = shrink(conf)
    figures = yaml.safe_load((conf.path / "tiny/parameters/figures.yml").read_text())["figures"]
    run(project, conf, "dsd_b", *rows, *figures)
    check(conf, rows)
    for figure in figures:
        found = json.loads((conf.data / f"08_reporting/{figure}/summary.json").read_text())
        points = [point for line in found["lines"].values() for point in line]
        assert all(point["value"] is not None for point in [*points, *found["levels"].values()])
