"""What conf/local may say in a stage of DVC."""

import shutil

import pytest
import yaml

from selfdistill.config_loader import ProjectConfigLoader
from selfdistill.lineage.parameters import check_local


@pytest.fixture
def local(project, tmp_path):
    """Write a file of conf/local in a copy of conf, and check it."""
    conf = tmp_path / "conf"
    ignore = shutil.ignore_patterns("local")
    shutil.copytree(project / "conf", conf, ignore=ignore)

    def local(name, content):
        file = conf / "local" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content))
        check_local(conf)

    return local


ENTRY = {"type": "selfdistill.io.checkpoint.CheckpointDataset", "path": "/big"}
SEED = {"dsd_b": {"train": {"seed": 2}}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("parameters/x.yml", SEED, "parameters change dsd_b, which DVC does not see"),
        ("parameters.yml", SEED, "parameters change dsd_b, which DVC does not see"),
        ("parameters_mine.yml", SEED, "parameters change dsd_b, which DVC does not see"),
        ("parameters/x.yaml", SEED, "parameters change dsd_b, which DVC does not see"),
        ("parameters.yml", {"evaluation": {"profile": "fast"}}, "parameters change evaluation"),
        ("parameters.yml", {"teachers": {"dinov3_vitb16": {"dim": 7}}}, "change teachers"),
        ("globals.yml", {"data_root": "/scratch"}, "globals.yml: data_root is set"),
        (
            "catalog.yml",
            {"{row}.checkpoint": {"type": "pickle.PickleDataset", "filepath": "x"}},
            r"catalog change \{row\}\.checkpoint",
        ),
        # They come before the patterns of base.
        ("catalog.yml", {"dsd_b.checkpoint": ENTRY}, r"catalog change dsd_b\.checkpoint"),
        ("catalog.yml", {"{row}.plain.samples": ENTRY}, r"catalog change \{row\}\.plain"),
        ("parameters.yml", {"teachers": {"dinov3_vitb16": {"weights": "random"}}}, "teachers"),
    ],
)
def test_a_stage_of_dvc_refuses_what_conf_local_changes(local, name, content, message):
    before = ProjectConfigLoader.latest
    with pytest.raises(ValueError, match=message):
        local(name, content)
    assert ProjectConfigLoader.latest is before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("globals.yml", {"imagenet": "/datasets/imagenet", "assets": "/datasets/assets"}),
        ("parameters/distributed.yml", {"distributed": {"num_ranks": 2, "max_restarts": 9}}),
        ("parameters.yml", {"plan": {"utilisation": 0.3}, "compare": {"samples": "x.npz"}}),
        ("parameters.yml", {"teachers": {"dinov3_vitb16": {"weights": "/w/x.safetensors"}}}),
        ("parameters.yml", {"mine_64": {"raw": "mine", "preprocess": {}}}),
        ("catalog.yml", {"raw.mine": {"type": "x", "path": "y"}}),
    ],
)
def test_paths_ranks_and_own_datasets_in_conf_local_are_fine(local, name, content):
    local(name, content)
