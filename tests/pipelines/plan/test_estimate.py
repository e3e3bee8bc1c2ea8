"""Hours, disk and room of a plan follow from its FLOP and bytes."""

from dataclasses import replace

import pytest
from kedro.config import OmegaConfigLoader

from selfdistill.config import ProjectConfig
from selfdistill.data.config import LatentsConfig, PreprocessConfig
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.plan.config import HardwareConfig, PlanConfig
from selfdistill.pipelines.plan.estimate import (
    gpu_hours,
    largest_batch,
    memory,
    plan_sets,
    plan_training,
)
from selfdistill.pipelines.plan.sampling import SamplingCost
from selfdistill.pipelines.plan.step import StepCost, trace_step
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.selection_config import SelectionConfig
from selfdistill.settings import CONFIG_LOADER_ARGS


@pytest.fixture
def plan() -> PlanConfig:
    gpu = {"bf16_tflops": 100, "tf32_tflops": 50, "memory_gb": 10}
    return PlanConfig.model_validate(
        {
            "rows": None, "num_gpus": 4, "utilisation": 0.5, "usable_memory": 0.9,
            "hardware": {"gpu": gpu}, "num_images": {},
        }
    )  # fmt: skip


STEP = StepCost(
    size=16, share=48, num_turns=1, tokens=0, num_trained=100, loss_flops=16_000,
    update_flops=5_000, weights=800, frozen=50, gradients=400, states=400, checkpoint=800,
    backward=9_650, update=2_000, rest=100, layer=70,
)  # fmt: skip


def test_hours_are_flop_by_the_used_share_of_the_peak(plan):
    assert gpu_hours(100 * 10**12 * 1800, 100, plan) == pytest.approx(1)


def test_every_gpu_makes_the_whole_update_and_its_share_of_the_images(network, train_config, plan):
    row = plan_training("data", 16, train_config, STEP, 7, None, {}, 0, plan)
    assert (row.num_steps, row.num_images) == (12, 96)
    assert row.total_flops == 96 * 1_000 + 12 * 4 * 5_000
    tf32 = row.total_flops / 50e12 / 0.5 / 3600  # the row is of float32
    assert row.hours["gpu"] == (pytest.approx(tf32), 0)


def test_fsdp_holds_its_share_and_the_layers_at_work():
    pixels = 3
    waiting = 2 * 16 * 3
    assert memory(STEP, "ddp", 4, 16, pixels) == 9_650 + waiting
    alternating = replace(STEP, num_turns=2)  # all images of a step wait for its second turn
    assert memory(alternating, "ddp", 4, 16, pixels) == 9_650 + waiting + 48 * 3
    spared = (800 + 400 + 400) * 3 // 4
    assert memory(STEP, "fsdp", 4, 16, pixels) == 9_650 - spared + 100 + 3 * 70 + waiting


def test_the_largest_micro_batch_fits_and_divides(plan):
    def fit(memory_bytes):
        gpu = HardwareConfig(bf16_tflops=1, tf32_tflops=1, memory_gb=memory_bytes / 0.9 / 1e9)
        return largest_batch(STEP, "ddp", gpu, plan, pixels=0)

    assert fit(9_650) == 16
    assert fit(9_649) == 12  # 48 is no multiple of 13, 14 and 15
    assert fit(1_000) == 0


def test_a_smaller_micro_batch_needs_no_more_than_the_plan_says(network, method, train_config):
    values = {
        "batch_size": 16, "micro_batch_size": 16, "log_nimg": 16, "checkpoint_nimg": 32,
        "precision": "bf16",
    }  # fmt: skip
    config = TrainConfig.model_validate({**train_config.model_dump(), **values})
    whole = trace_step(network, method, config, 16, num_ranks=2)
    smaller = config.model_copy(update={"micro_batch_size": 1})
    exact = trace_step(network, method, smaller, 16, num_ranks=2)
    assert max(exact.backward, exact.update) <= memory(whole, "ddp", 2, 1, pixels=0)


def test_disk_of_imagenet_is_what_the_data_page_says(plan):
    """docs/data.md, table "How much"."""
    n = 1_281_167
    preprocess = PreprocessConfig(
        crop="adm", resolution=256, num_classes=1000, shard_size=1024, max_reject_share=0
    )
    teacher = TeacherConfig.model_validate(
        {
            "architecture": "any", "weights": "random", "patch_size": 16, "dim": 768,
            "batch_size": 1, "cache": {"mirrored": True, "dtype": "int8"},
        }
    )  # fmt: skip
    latents = LatentsConfig(vae="sd", convention="sd", mirrored=True, dtype="float32")
    vae = VAEConfig(weights="random", batch_size=1)
    sets = plan_sets(n, False, preprocess, teacher, 10**9, {"sd": (latents, vae)}, plan)
    assert (sets.images, sets.features, sets.latents) == (n * 196_608, n * 395_264, n * 65_536)
    assert sets.feature_hours["gpu"] == pytest.approx(2 * n * 1e9 / 50e12 / 0.5 / 3600)
    unknown = plan_sets(None, False, preprocess, teacher, 10**9, {}, plan)
    assert unknown.images is unknown.features is unknown.latents is None


@pytest.fixture(scope="module")
def base(project) -> dict:
    loader = OmegaConfigLoader(str(project / "conf"), env="base", **CONFIG_LOADER_ARGS)
    return loader["parameters"]


@pytest.mark.parametrize(
    ("rows", "planned"),
    [
        (None, ["dsd_s", "dsd_m", "dsd_b"]),
        ("dsd_b", ["dsd_b"]),
        ("dsd_b, caltech10_study", ["dsd_b", "dsd_s_caltech10"]),
        (["collapse_naive"], ["collapse_naive"]),
    ],
)
def test_rows_and_studies_are_planned_by_name(base, rows, planned):
    config = ProjectConfig.from_parameters({**base, "plan": {**base["plan"], "rows": rows}})
    others = ("ssd", "sida")
    found = [name for name, row in config.planned_rows().items() if row.paper_name not in others]
    assert found == planned


def test_an_unknown_row_is_named(base):
    with pytest.raises(ValueError, match=r"plan.rows: no row or study 'dsd_x'; there are"):
        ProjectConfig.from_parameters({**base, "plan": {**base["plan"], "rows": "dsd_x"}})


def test_every_raw_set_of_a_dataset_has_an_expected_number_of_images(base):
    config = ProjectConfig.from_parameters(base)
    assert {dataset.raw for dataset in config.datasets.values()} <= config.plan.num_images.keys()


def test_samples_that_a_state_is_selected_by_are_part_of_the_training(train_config, plan):
    """96 images, selected each 40: three times."""
    selection = SelectionConfig(
        metric="fid", sampling="plain", nimg=40, num_images=1_000, batch_size=64, seed=1
    )
    cost = SamplingCost(1, {"plain": 10**12})
    arguments = ("data", 16, train_config, STEP, 7, cost, {}, 0, plan)
    (usual, _), (longer, _) = (
        plan_training(*arguments, one).hours["gpu"] for one in (None, selection)
    )
    assert longer - usual == pytest.approx(3 * 1_000 / 50 / 0.5 / 3600)
