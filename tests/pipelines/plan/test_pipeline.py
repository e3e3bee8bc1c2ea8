import csv

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from selfdistill.pipelines.plan.nodes import plan_dataset


@pytest.fixture
def planned(project, conf):
    """Plan one row of tiny, of which nothing is there."""
    bootstrap_project(project)
    with KedroSession.create(
        project, env="tiny", conf_source=str(conf.path),
        runtime_params={"plan": {"rows": "dsd_s", "num_gpus": 2}, "dsd_s": {"teacher": "online"}},
    ) as session:  # fmt: skip
        session.run(pipeline_names=["plan"])
    return conf.data


def test_a_row_is_planned_before_there_is_anything(planned):
    folder = planned / "08_reporting/plan"
    lines = list(csv.DictReader((folder / "plan.csv").open(encoding="utf-8")))
    found = {(line["name"], line["of"], line["quantity"]): line["planned"] for line in lines}
    assert found["dsd_s", "", "images"] == "48000"
    assert int(found["dsd_s", "", "teacher at work, of an image"]) > 0
    assert float(found["dsd_s", "h200", "training"]) > 0
    assert int(found["dsd_s", "rtx_4090, fsdp", "largest micro-batch"]) == 32
    assert int(found["dsd_s", "plain", "sample"]) < int(found["dsd_s", "guided", "sample"])
    teacher, loss, update, steps, training = (
        int(found["dsd_s", "", name])
        for name in (
            "teacher at work, of an image",
            "loss and gradient of an image",
            "update of a step and a rank",
            "steps",
            "training",
        )
    )
    assert training == 48_000 * (loss + teacher) + steps * 2 * update
    assert 0 < teacher < loss
    assert found["digits_32", "features", "disk"] in ("", "0")  # the teacher is at work
    assert found["digits_32", "", "images"] == "1797"
    assert int(found["digits_32", "images", "disk"]) == 1797 * 3072
    page = (folder / "plan.md").read_text(encoding="utf-8")
    assert "Planned, not measured" in page
    assert "utilisation 40%" in page
    assert (folder / "plan.html").is_file()


def test_the_number_of_images_is_read_from_the_set_that_is_there(
    images, plan_values, tmp_path, caplog
):
    (tmp_path / "manifest.json").write_text("{}")
    known, absent, damaged = (
        plan_dataset("raw", place, *plan_values)
        for place in (images.path, images.path / "none", tmp_path)
    )
    assert (known.num_images, known.is_made) == (len(images), True)
    for expected in (absent, damaged):
        assert (expected.num_images, expected.is_made) == (7, False)
    assert str(tmp_path) in caplog.text


@pytest.fixture
def plan_values():
    from selfdistill.data.config import PreprocessConfig
    from selfdistill.pipelines.plan.config import PlanConfig

    preprocess = PreprocessConfig(
        crop="adm", resolution=16, num_classes=5, shard_size=16, max_reject_share=0
    )
    gpu = {"bf16_tflops": 1, "tf32_tflops": 1, "memory_gb": 1}
    plan = PlanConfig.model_validate(
        {
            "rows": None, "num_gpus": 1, "utilisation": 1, "usable_memory": 1,
            "hardware": {"gpu": gpu}, "num_images": {"raw": 7},
        }
    )  # fmt: skip
    return preprocess, plan, {}
