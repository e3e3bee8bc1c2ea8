"""All rows of all environments, checked as a whole."""

import copy

import pytest
import torch
from kedro.config import OmegaConfigLoader

from selfdistill.config import ProjectConfig
from selfdistill.methods.registry import NETWORKS
from selfdistill.settings import CONFIG_LOADER_ARGS

ENVIRONMENTS = ("base", "tiny")


def parameters(project, env):
    return OmegaConfigLoader(str(project / "conf"), env=env, **CONFIG_LOADER_ARGS)["parameters"]


@pytest.fixture
def base(project):
    return copy.deepcopy(parameters(project, "base"))


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_row_of_every_environment_is_valid(project, env):
    config = ProjectConfig.from_parameters(parameters(project, env))
    assert list(config.rows) == ["dsd_s", "dsd_m", "dsd_b"]


def test_full_size_rows_have_the_papers_parameter_count(project):
    config = ProjectConfig.from_parameters(parameters(project, "base"))
    for name, row in config.rows.items():
        with torch.device("meta"):
            network = NETWORKS[row.network.root.name](row.network.root)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == pytest.approx(row.paper.params, rel=0.01), name


def test_tiny_has_the_rows_of_base_and_changes_no_papers_figure(project):
    base, tiny = (ProjectConfig.from_parameters(parameters(project, env)) for env in ENVIRONMENTS)
    assert base.rows.keys() == tiny.rows.keys()
    for name, row in base.rows.items():
        assert tiny.rows[name].paper == row.paper
        assert tiny.rows[name].samplings.keys() == row.samplings.keys()


def test_base_is_50_epochs_of_imagenet_and_249_updates(project):
    row = ProjectConfig.from_parameters(parameters(project, "base")).rows["dsd_b"]
    assert row.train.total_nimg == 50 * 1_281_167
    assert all(sampling.num_steps == 249 for sampling in row.samplings.values())
    assert all(sampling.num_images == 50_000 for sampling in row.samplings.values())


MISTAKES = [
    (("dsd_b", "train", "learning_rate"), 1.0, "dsd_b.train.learning_rate: unknown key"),
    (("dsd_b", "train", "seed"), "many", "dsd_b.train.seed: .*'many'"),
    (("dsd_b", "method", "alpha"), 1.0, "dsd_b.method.alpha: unknown key"),
    (("dsd_b", "data"), "imagenet_128", "dsd_b.data: no dataset 'imagenet_128'"),
    (("dsd_b", "network", "num_classes"), 10, "dsd_b.network.num_classes is 10"),
    (("dsd_b", "network", "teacher_dim"), 1024, "dsd_b.network.teacher_dim is 1024"),
    (("imagenet_256", "teacher"), "clip", "imagenet_256.teacher: no teacher 'clip'"),
    (("imagenet_256", "preprocess", "crop"), "random", "imagenet_256.preprocess.crop: .*'random'"),
    (
        ("dsd_b", "paper", "samplings", "giuded"),
        {"fid": 1.0},
        "dsd_b: paper.samplings: the row has no sampling 'giuded'; it has plain, guided",
    ),
    (("dsd_b", "paper", "samplings", "plain", "fdi"), 1.0, "dsd_b.paper.samplings.plain.fdi"),
    (("dsd_b", "network", "patch_size"), 32, "dsd_b.network.patch_size is 32"),
    (("distributed", "num_ranks"), 0, "distributed.num_ranks"),
    (("dsd_x",), {"data": "imagenet_256"}, "dsd_x.network: Field required"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_a_mistake_is_named_by_its_path_in_the_yaml(base, path, value, message):
    place = base
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message) as error:
        ProjectConfig.from_parameters(base)
    assert "https://" not in str(error.value)


def test_missing_settings_are_named(base):
    del base["teachers"]
    with pytest.raises(ValueError, match="teachers"):
        ProjectConfig.from_parameters(base)
