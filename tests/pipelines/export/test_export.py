"""A row's checkpoint and numbers in, a directory with a model card out, through the catalog."""

import json
import logging

import pytest
import torch
import yaml
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner

from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.registry import build_method
from selfdistill.methods.release import Release
from selfdistill.pipelines import export
from selfdistill.pipelines.export.card import default_sampling
from selfdistill.pipelines.sample.config import SampleConfig

pytestmark = pytest.mark.filterwarnings("ignore:One or more dataset names contain")

PLAIN = {
    "solver": "euler", "num_steps": 3, "timestep_shift": 1.0, "guidance": 1.0,
    "guidance_interval": [0.0, 1.0], "seed": 0, "num_images": 12, "repeats": 1,
    "batch_size": 12, "shard_size": 12,
}  # fmt: skip
SAMPLINGS = {"plain": PLAIN, "guided": {**PLAIN, "guidance": 1.5}}
PAPER = {
    "name": "dsd",
    "params": 205_000_000,
    "data": "imagenet_256",
    "num_samples": 50_000,
    "reference": "VIRTUAL.npz",
    "samplings": {"plain": {"fid": 4.25, "sfid": 8.96}, "guided": {"fid": 3.35}},
}
TINY = {"weights_sha256": "9a98c8c2" + "0" * 56, "resize": "none", "profile": "exact"}
CATALOG = {
    "{row}.release": {
        "type": "selfdistill.io.release.ReleaseDataset",
        "path": "{tmp_path}/08_reporting/{row}/release",
    },
    "{row}.{sampling}.metrics": {
        "type": "selfdistill.io.report.MetricsDataset",
        "filepath": "{tmp_path}/08_reporting/{row}/{sampling}/metrics.json",
        "optional": True,
    },
    "{owner}.{job}_scratch": {
        "type": "selfdistill.io.shards.ScratchDataset",
        "path": "{tmp_path}/scratch/{owner}/{job}",
    },
}


def measured(checkpoint, metrics=None, **more):
    return {
        "metrics": metrics or {"fd_tiny": 12.3456},
        "baselines": {},
        "protocol": {
            "extractors": {"tiny": TINY},
            "num_samples": 12,
            "reference": {"published": None, "num_images": 1797},
            "samples": {"checkpoint": checkpoint.about["sha256"], "nfe": 3},
        },
        **more,
    }


@pytest.fixture
def checkpoint(tmp_path, network, method, images):
    torch.manual_seed(0)
    about = {
        "nimg": 64_058_350,
        "train": {"seed": 0, "optimizer": {"eps": 1e-8}},
        "fingerprint": "f" * 16,
        "inputs": {"images": images.fingerprint},
        "code": {"source": "s" * 16, "torch": torch.__version__},
    }
    return Checkpoint.write(
        tmp_path / "checkpoint",
        build_method(network, method),
        network_config=network,
        method_config=method,
        about=about,
    )


@pytest.fixture
def catalog(tmp_path, checkpoint, images):
    entries = json.loads(json.dumps(CATALOG).replace("{tmp_path}", str(tmp_path)))
    catalog = DataCatalog.from_config(entries)
    values = {
        "dsd_b.checkpoint": checkpoint,
        "images_16.images": images,
        "params:dsd_b.paper": PAPER,
        "params:dsd_b.data": "images_16",
        "params:dsd_b.samplings": SAMPLINGS,
    }
    for name, value in values.items():
        catalog[name] = MemoryDataset(value, copy_mode="assign")
    return catalog


def run(catalog):
    pipeline = Pipeline(
        export.create_pipeline("dsd_b", list(SAMPLINGS)),
        namespace="dsd_b",
        inputs={"images": "images_16.images"},
    )
    SequentialRunner().run(pipeline, catalog)
    return catalog.load("dsd_b.release")


def numbers(card):
    """Lines of the card's table of numbers."""
    section = card.split("## Numbers\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_a_row_that_nobody_has_evaluated_is_released_with_the_papers_numbers(catalog, tmp_path):
    release = run(catalog)
    assert release.path == tmp_path / "08_reporting" / "dsd_b" / "release"
    assert release.sample([0, 4]).shape == (2, 16, 16, 3)
    lines = numbers(release.card)
    assert [(line["sampling"], line["metric"], line["paper"]) for line in lines] == [
        ("plain", "FID ↓", "4.25"),
        ("plain", "sFID ↓", "8.96"),
        ("guided", "FID ↓", "3.35"),
    ]
    assert {line["ours"] for line in lines} == {""}
    assert "50,000 samples on imagenet_256 against VIRTUAL.npz" in " ".join(release.card.split())


def test_a_measured_number_stands_with_its_protocol(catalog, checkpoint):
    catalog.save("dsd_b.guided.metrics", measured(checkpoint, std={"fd_tiny": 0.5}))
    lines = numbers(run(catalog).card)
    assert [line for line in lines if line["ours"]] == [
        {
            "sampling": "guided", "metric": "fd_tiny ↓", "paper": "", "ours": "12.35 ± 0.5",
            "data": "images_16", "samples": "12", "reference": "1,797 images",
            "extractor": "tiny (9a98c8c2)",
        }
    ]  # fmt: skip
    assert [line["metric"] for line in lines] == ["FID ↓", "sFID ↓", "FID ↓", "fd_tiny ↓"]


def test_a_number_of_another_checkpoint_is_left_out_with_a_warning(catalog, checkpoint, caplog):
    other = measured(checkpoint)
    other["protocol"]["samples"]["checkpoint"] = "0" * 64
    catalog.save("dsd_b.plain.metrics", other)
    with caplog.at_level(logging.WARNING):
        release = run(catalog)
    assert "12.35" not in release.card
    assert "dsd_b.plain.metrics were measured of another checkpoint" in caplog.text


def test_the_card_says_what_the_row_was_trained_with_and_where(catalog, checkpoint):
    card = run(catalog).card
    assert card.startswith("# dsd_b\n")
    assert "DSD: Diffusion as Self-Distillation (arXiv:2511.14716)" in card
    assert "64,058,350 images" in card
    for fact in ("f" * 16, "s" * 16, torch.__version__, checkpoint.about["sha256"]):
        assert fact in card
    assert "Apache-2.0" in card
    assert "DINOv3 License" in card
    parameters = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert list(parameters) == ["data", "network", "method", "train", "samplings"]
    for name in ("network", "method", "train"):
        assert parameters[name] == checkpoint.about[name]
    assert parameters["samplings"] == SAMPLINGS


def test_the_lines_of_the_card_run_in_the_directory(catalog, monkeypatch):
    release = run(catalog)
    program = release.card.split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) == 3
    monkeypatch.chdir(release.path)
    values = {}
    exec(program, values)
    assert values["x"].shape == (2, 16, 16, 3)


def test_a_release_samples_as_the_papers_best_sampling(catalog):
    assert run(catalog).sampling.guidance == 1.5
    models = {name: SampleConfig.model_validate(values) for name, values in SAMPLINGS.items()}
    assert default_sampling(PAPER, models).guidance == 1.5  # as Kedro hands it over in a row's run
    assert default_sampling({**PAPER, "samplings": {}}, SAMPLINGS).guidance == 1.0


def test_the_export_is_the_same_bytes_again(catalog, checkpoint):
    catalog.save("dsd_b.plain.metrics", measured(checkpoint))
    first = {file.name: file.read_bytes() for file in run(catalog).path.iterdir()}
    again = {file.name: file.read_bytes() for file in run(catalog).path.iterdir()}
    assert first == again
    assert isinstance(catalog.load("dsd_b.release"), Release)


def test_other_images_than_those_of_the_training_are_refused(catalog, shard_set, images, tmp_path):
    other = shard_set(tmp_path / "other", images.read(range(20))[:, ::-1].copy())
    catalog["images_16.images"] = MemoryDataset(other, copy_mode="assign")
    with pytest.raises(ValueError, match="trained on other images"):
        run(catalog)


def test_the_release_shows_itself_and_its_absence(catalog):
    entry = catalog["dsd_b.release"]
    assert not entry.exists()
    run(catalog)
    assert entry.exists()
    assert json.loads(entry.preview())["nimg"] == 64_058_350


def test_the_card_keeps_the_number_of_a_selection_apart(catalog, checkpoint):
    assert "optimistic" not in run(catalog).path.joinpath("README.md").read_text()
    trail = [[16, 5.0], [32, 4.126]]
    checkpoint.about["selected"] = {"metric": "fid", "value": 4.126, "nimg": 32, "trail": trail}
    card = run(catalog).path.joinpath("README.md").read_text()
    assert "those of 32 images, the best of 2 evaluations during training:\nFID 4.13." in card
    assert "4.13" not in card.split("## Numbers")[1].split("The paper's numbers are")[0]
