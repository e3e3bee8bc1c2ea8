"""The rows of SiD, SiDA and SiD2A, through real Kedro sessions: shrunk to seconds."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfdistill.config import ProjectConfig
from selfdistill.config_loader import ProjectConfigLoader
from selfdistill.settings import CONFIG_LOADER_ARGS

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


HALF_A_MILLION, TWO_MILLIONS = 500_000, 2_000_000
# Batch, images a GPU holds, learning rate, epsilon, half-life, augmented share; Tables 5 and 6.
RECIPES = {
    "cifar10_uncond": (256, 32, 1e-5, 1e-8, HALF_A_MILLION, 0.12),
    "cifar10_cond": (256, 32, 1e-5, 1e-8, HALF_A_MILLION, 0.12),
    "imagenet_64": (8_192, 32, 4e-6, 1e-6, TWO_MILLIONS, None),
    "ffhq": (512, 64, 1e-5, 1e-6, HALF_A_MILLION, 0.15),
    "afhqv2": (512, 64, 5e-6, 1e-6, HALF_A_MILLION, 0.15),
    "edm2_xs": (2_048, 64, 5e-5, 1e-6, TWO_MILLIONS, None),
    "edm2_s": (2_048, 64, 5e-5, 1e-6, TWO_MILLIONS, None),
    "edm2_m": (2_048, 32, 5e-5, 1e-6, TWO_MILLIONS, None),
    "edm2_l": (2_048, 32, 5e-5, 1e-6, TWO_MILLIONS, None),
    "edm2_xl": (2_048, 16, 5e-5, 1e-6, TWO_MILLIONS, None),
    "edm2_xxl": (2_048, 2, 5e-5, 1e-6, TWO_MILLIONS, None),
}


DROPOUT = {
    "cifar10_uncond": 0.13, "cifar10_cond": 0.13, "imagenet_64": 0.1, "ffhq": 0.05, "afhqv2": 0.05,
    "edm2_xs": 0, "edm2_s": 0, "edm2_m": 0.1, "edm2_l": 0.1, "edm2_xl": 0.1, "edm2_xxl": 0.1,
}  # fmt: skip
# Millions of images: SiD's better alpha, SiDA, and SiD2A with 1 and, if there is one, 1.2. How long
# SiDA of EDM2-XL took is not known.
LENGTHS = {
    "cifar10_uncond": (404.0, 217.9, 28.2, 22.5), "cifar10_cond": (713.3, 293.2, 38.9, 53.8),
    "imagenet_64": (939.2, 249.2, 29.5, 21.5), "ffhq": (498.2, 185.9, 169.0, 80.9),
    "afhqv2": (371.7, 127.5, 175.1, 175.1), "edm2_xs": (249.4, 166.4, 28.7),
    "edm2_s": (192.0, 117.8, 75.3), "edm2_m": (226.8, 115.7, 44.0), "edm2_l": (203.8, 166.9, 50.2),
    "edm2_xl": (234.0, None, 79.5), "edm2_xxl": (77.9, 89.8, 29.8),
}  # fmt: skip


@pytest.mark.parametrize("data", LENGTHS)
def test_rows_are_as_long_as_what_was_published(published, data):
    alone = "edm2" in data
    sid = f"sid_{data}" + ("" if alone else "_alpha_10" if data == "afhqv2" else "_alpha_12")
    names = [sid, f"sida_{data}"]
    names += [f"sid2a_{data}"] if alone else [f"sid2a_{data}_alpha_{n}" for n in (10, 12)]
    for name, millions in zip(names, LENGTHS[data], strict=True):
        if millions is not None:
            assert published[name].train.total_nimg == pytest.approx(1e6 * millions), name


@pytest.mark.parametrize("data", RECIPES)
def test_rows_are_the_papers_recipes(published, data):
    rows = {
        name: row
        for name, row in published.items()
        if name.removesuffix("_alpha_10").removesuffix("_alpha_12").endswith(f"_{data}")
        and row.method.root.name == "sid"
    }
    assert len(rows) == (3 if "edm2" in data else 5)
    of_edm2 = "edm2" in data
    for name, row in rows.items():
        method, train, optimizer = row.method.root, row.train, row.train.optimizer
        augmented = method.augment.probability if method.augment else None
        found = (train.batch_size, train.micro_batch_size, optimizer.lr, optimizer.eps)
        assert (*found, method.half_life_nimg, augmented) == RECIPES[data], name
        assert optimizer.betas == (0.0, 0.999)
        assert (method.start_level, method.largest_share) == (2.5, 0.8)
        assert method.generator_weight == (50 if name == "sid2a_edm2_m" else 100)
        assert method.alpha == (1.2 if name.endswith("_12") else 1.0)
        assert (method.log_mean, method.log_deviation) == ((-0.4, 1.0) if of_edm2 else (-1.2, 1.2))
        plain = name in ("sida_edm2_s", "sid2a_edm2_s")
        assert method.normalize_weights == (of_edm2 and not plain)
        assert method.log_variance == (not plain)
        assert (method.fake_weight, method.ramp_up) == (1, 0.05)
        assert row.network.root.dropout == DROPOUT[data]
        momentum = {turn: one.betas for turn, one in train.optimizers.items()}
        of_ffhq = name.startswith("sid_ffhq")
        assert momentum == ({"network": (0.9, 0.999)} if of_ffhq else {}), name
        if name.startswith("sid_"):
            assert method.adversary is None
        else:
            adversary = method.adversary
            assert (adversary.rests_nimg, adversary.joins_nimg) == (100_000, 200_000)
            assert adversary.generator_weight == 0.01
            assert adversary.fake_weight == (100 if of_edm2 else 1)
            assert adversary.largest_gradient == (None if of_edm2 else 1)
        teacher = f"edm2_{data[5:]}" if of_edm2 else f"edm_{data}"
        if name.startswith("sid2a_"):
            assert row.start.teacher == teacher
            assert published[row.start.row].start.row == teacher
        else:
            assert row.start.row == teacher
        assert row.samplings["one_step"].repeats == 10


@pytest.fixture(scope="module")
def published(project):
    latest = ProjectConfigLoader.latest
    loader = ProjectConfigLoader(str(project / "conf"), env="base", **CONFIG_LOADER_ARGS)
    ProjectConfigLoader.latest = latest
    return ProjectConfig.from_parameters(loader["parameters"]).rows


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
def test_one_step_knows_the_digits_and_comes_near_its_teachers_many(conf, rows):
    """Tiny's own length and seed; three seeds of all methods are in `benchmarks/one_step.py`."""
    rows.run("edm_cifar10_cond", "sid_cifar10_cond_alpha_10")

    def metrics(sampling):
        file = conf.data / "08_reporting" / sampling / "metrics.json"
        return json.loads(file.read_text())["metrics"]

    teacher = metrics("edm_cifar10_cond/n18")
    one_step = metrics("sid_cifar10_cond_alpha_10/one_step")
    assert one_step["class_accuracy"] >= 0.8
    assert one_step["fd_tiny"] <= 2 * teacher["fd_tiny"]


@pytest.mark.slow
def test_every_row_and_figure_runs_in_tiny(rows):
    names = rows.shrink("dsd", "ssd", "sida")["sida"]
    figures = rows.figures(names)
    assert {*figures} == {"alpha_cifar10_uncond", "data_share_edm2_xs"}
    rows.run("dsd_b", "issd_dsd_b_10", "dit_xl_256", *names, *figures)
    rows.check("sida", names)
    rows.check_figures(figures)
