"""Fig. 2 of DSD (arXiv:2511.14716) at small scale: what joint training collapses by, what stops it.

Five cases, three seeds, digits and CIFAR-10. What is asserted held for each of the three seeds on
the data named; what did not hold stands in docs/dsd.md.
"""

import json
import logging
from pathlib import Path
from statistics import fmean

import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from PIL import Image

from selfdistill.config import ProjectConfig
from selfdistill.data.shards import Shards
from selfdistill.pipelines.report.study import summarise_study
from selfdistill.pipelines.train.job import train_row
from selfdistill.settings import CONFIG_LOADER_ARGS

logger = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
CIFAR10 = Path(__file__).parents[2] / "shared/data/cifar10"
STUDIES = {"digits": ("tiny", "collapse_study"), "cifar10": ("base", "collapse_study_cifar10")}
NUM_CHANNELS = 16
CASES = ("naive", "decoupled", "transformed", "averaged", "augmented")


def preprocessed(project, conf, env, dataset):
    """Return a dataset's images, made by its own pipeline."""
    bootstrap_project(project)
    with KedroSession.create(project, env=env, conf_source=str(conf.path)) as session:
        session.run(pipeline_names=[f"preprocess_{dataset}"])
    return Shards.open(conf.data / "03_primary" / dataset / "images")


@pytest.fixture(params=STUDIES)
def trained(request, project, conf, one_rank, tmp_path):
    """Train the study's cases with each seed; return each seed's training logs by case."""
    env, study = STUDIES[request.param]
    if request.param == "cifar10":
        if not CIFAR10.is_dir():
            pytest.skip(f"needs CIFAR-10 in {CIFAR10}")
        conf.change("base/globals.yml", {"cifar10": str(CIFAR10), "data_root": str(conf.data)})
    parameters = OmegaConfigLoader(str(conf.path), env=env, **CONFIG_LOADER_ARGS)["parameters"]
    rows = {
        name.rsplit("_", 1)[1]: row
        for name, row in ProjectConfig.from_parameters(parameters).rows.items()
        if row.study == study
    }
    images = preprocessed(project, conf, env, next(iter(rows.values())).data)

    def train(case, seed):
        row = rows[case]
        config = row.train.model_copy(update={"seed": seed})
        scratch = tmp_path / f"{case}_{seed}"
        return train_row(images, None, row.network, row.method, config, one_rank, scratch, {})

    return request.param, [{case: log_of(train(case, seed)) for case in CASES} for seed in SEEDS]


def log_of(checkpoint):
    return [json.loads(line) for line in checkpoint.curves.read_text().splitlines()]


def margin_of(log):
    return fmean(record["diagnostics"]["rank_margin"] for record in log)


@pytest.mark.slow
def test_the_five_cases_come_out_in_the_papers_order(trained):
    data, logs = trained
    for seed, log in zip(SEEDS, logs, strict=True):
        end = {case: numbers["end"] for case, numbers in summarise_study(log).items()}
        rank, margin, error = (
            {case: end[case][name] for case in CASES}
            for name in ("rank_target", "rank_margin", "reconstruction_error")
        )
        said = f"{data}, seed {seed}: {rank}, {margin}, {error}"
        logger.info(said)
        stable = ["averaged", "augmented"]
        if data == "cifar10":  # on digits this case keeps its rank, and no more
            stable.insert(0, "transformed")
        for collapsed in ("naive", "decoupled"):
            assert rank[collapsed] < NUM_CHANNELS / 4, said  # most of it is lost
            assert all(record["diagnostics"]["rank_margin"] < 0 for record in log[collapsed]), said
            assert rank["transformed"] > 1.2 * rank[collapsed], said
            for case in ("averaged", "augmented"):
                assert rank[case] > 2 * rank[collapsed], said
            assert error["averaged"] < 0.75 * error[collapsed], said
        assert margin["transformed"] > margin["naive"], said
        assert all(margin[case] > 0 for case in stable), said  # Eq. 5
        assert end["naive"]["std_target"] < 0.05, said  # one single point
        assert error["averaged"] == min(error.values()), said
    margins = {case: fmean(margin_of(log[case]) for log in logs) for case in CASES}
    assert max(margins, key=margins.get) == "augmented", margins  # the widest


@pytest.mark.slow
def test_without_normalisation_the_latents_grow_until_the_noise_is_drowned(
    project, conf, one_rank, tmp_path
):
    parameters = OmegaConfigLoader(str(conf.path), env="tiny", **CONFIG_LOADER_ARGS)["parameters"]
    row = ProjectConfig.from_parameters(parameters).rows["collapse_averaged"]
    images = preprocessed(project, conf, "tiny", row.data)
    stds = {}
    for normalised in (True, False):
        network = type(row.network).model_validate(
            row.network.model_dump() | {"normalize_latent": normalised}
        )
        scratch = tmp_path / str(normalised)
        checkpoint = train_row(images, None, network, row.method, row.train, one_rank, scratch, {})
        stds[normalised] = [record["diagnostics"]["std_online"] for record in log_of(checkpoint)]
    assert max(stds[True]) < 1.1
    assert stds[False][-1] > 5
    assert stds[False][-1] > stds[False][len(stds[False]) // 2] > stds[False][0]


def test_a_study_of_a_few_steps_makes_its_figure_and_its_numbers(project, conf):
    short = {"train": {"total_nimg": 512, "log_nimg": 256, "checkpoint_nimg": 256}}
    conf.change("tiny/parameters/studies.yml", {f"collapse_{case}": short for case in CASES})
    bootstrap_project(project)
    with KedroSession.create(project, env="tiny", conf_source=str(conf.path)) as session:
        session.run(pipeline_names=["collapse_study"])
    reporting = conf.data / "08_reporting/collapse_study"
    summary = json.loads((reporting / "summary.json").read_text())
    assert list(summary) == [f"collapse_{case}" for case in CASES]
    assert all(one["nimg"] == 512 for one in summary.values())
    with Image.open(reporting / "figure.png") as figure:
        assert figure.width > 3 * figure.height  # five panels side by side
    assert not (conf.data / "04_feature").exists()  # a study without a teacher needs no features
