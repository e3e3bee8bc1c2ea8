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
CASES = ("naive", "decoupled", "transformed", "averaged", "augmented")


def preprocessed(project, conf, env, dataset):
    """Return a dataset's images, made by its own pipeline."""
    bootstrap_project(project)
    with KedroSession.create(project, env=env, conf_source=str(conf.path)) as session:
        session.run(pipeline_names=[f"preprocess_{dataset}"])
    return Shards.open(conf.data / "03_primary" / dataset / "images")


@pytest.fixture(params=STUDIES)
def trained(request, project, conf, one_rank, tmp_path):
    """Train the study's cases with each seed; return the summary of each seed by case."""
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
        checkpoint = train_row(images, None, row.network, row.method, config, one_rank, scratch, {})
        return [json.loads(line) for line in checkpoint.curves.read_text().splitlines()]

    summaries = [summarise_study({case: train(case, seed) for case in CASES}) for seed in SEEDS]
    logger.info("%s: %s", request.param, json.dumps(summaries))
    return request.param, summaries


@pytest.mark.slow
def test_the_five_cases_come_out_in_the_papers_order(trained):
    data, summaries = trained
    latent_dim = 16
    for seed, summary in zip(SEEDS, summaries, strict=True):
        rank, margin, error = (
            {case: summary[case]["end"][name] for case in CASES}
            for name in ("rank_target", "rank_margin", "reconstruction_error")
        )
        said = f"{data}, seed {seed}: {rank} {margin} {error}"
        for case in ("naive", "decoupled"):
            assert rank[case] < latent_dim / 4, said  # most of it is lost
            assert margin[case] < 0, said  # Eq. 5 is violated
            for stable in ("transformed", "averaged", "augmented"):
                assert rank[stable] > 1.5 * rank[case], said
                assert error[stable] < error[case], said
        assert margin["augmented"] > margin["averaged"] > margin["decoupled"], said
        assert margin["augmented"] > 0, said  # Eq. 5 holds, with the widest margin
        assert margin["augmented"] == max(margin.values()), said
    assert fmean(summary["averaged"]["end"]["rank_margin"] for summary in summaries) > 0


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
