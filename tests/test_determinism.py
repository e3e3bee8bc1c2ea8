"""One place sets what makes bits repeat, for as long as a job lasts."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch

from selfdistill.determinism import deterministic
from selfdistill.pipelines.train.job import train_row


def settings():
    return {
        "algorithms": torch.get_deterministic_debug_mode(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "benchmark": torch.backends.cudnn.benchmark,
        "precision": torch.get_float32_matmul_precision(),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def others():
    """Settings of whoever calls, unlike ours."""
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")


def test_everything_is_set_within_and_as_before_afterwards(others):
    def fail():
        with deterministic("cpu"):
            found.update(settings())
            torch.rand(3)
            raise KeyError

    before, found = settings(), {}
    with pytest.raises(KeyError):
        fail()
    assert settings() == before
    found.pop("random")
    assert found == {
        "algorithms": 2, "fill": False, "benchmark": False, "precision": "highest"
    }  # fmt: skip


def test_the_compiler_is_told_on_cuda_and_forgets_it_afterwards(monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found = []
    with deterministic("cpu"):
        with deterministic("cuda"):
            found.append(config.deterministic)
        found.append(torch.get_deterministic_debug_mode())
    assert found == [True, 2]
    assert not config.deterministic


def test_a_rank_in_this_process_is_set_and_leaves_nothing_behind(
    images, features, network, method, train_config, one_rank, tmp_path, monkeypatch
):
    from selfdistill.methods.dsd import DSD

    found, original, before = [], DSD.after_step, settings()

    def look(self, nimg, batch_size):
        original(self, nimg, batch_size)
        found.append(settings()["algorithms"])

    monkeypatch.setattr(DSD, "after_step", look)
    train_row(images, features, network, method, train_config, one_rank, tmp_path, {})
    assert found == [2] * 12
    assert settings() == before


def test_nothing_else_sets_what_makes_bits_repeat_or_draws_from_a_global_generator(project):
    words = re.compile(
        r"use_deterministic_algorithms|set_deterministic_debug_mode|set_float32_matmul_precision"
        r"|cudnn\.\w+ =|allow_tf32"
        r"|CUBLAS_WORKSPACE|np\.random\.(seed|rand|normal|shuffle|permutation)|^import random"
        r"|random\.(random|shuffle|choice)\(",
        re.MULTILINE,
    )
    source = project / "src" / "selfdistill"
    found = {file.name for file in source.rglob("*.py") if words.search(file.read_text())}
    found.remove("full_precision.py")  # sets the precision for a metric, and undoes it
    assert found == {"determinism.py"}


def test_another_number_of_threads_changes_losses_by_rounding_only(
    images, features, network, method, train_config, tmp_path
):
    """The sums of a CPU's threads are added in another order, and each step multiplies the rest.

    Of rounding alone 1e-7 is left after two steps, 2e-6 after four and, by machine, 1e-5 or a bit
    more after twelve; a mistake would be there from the first step.
    """
    program = """
        import json, sys
        from pathlib import Path
        import torch
        from selfdistill.data.shards import Shards
        from selfdistill.distributed_config import DistributedConfig
        from selfdistill.methods.config import MethodConfig
        from selfdistill.networks.config import NetworkConfig
        from selfdistill.pipelines.train.config import TrainConfig
        from selfdistill.pipelines.train.job import train_row
        a = json.loads(sys.argv[1])
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            checkpoint = train_row(
                Shards.open(Path(a["images"])), Shards.open(Path(a["features"])),
                NetworkConfig.model_validate(a["network"]),
                MethodConfig.model_validate(a["method"]), TrainConfig.model_validate(a["train"]),
                DistributedConfig(device="cpu", num_ranks=1),
                Path(a["scratch"]) / str(num_threads), {},
            )
            print(checkpoint.path)
    """
    values = {
        "images": str(images.path), "features": str(features.path), "scratch": str(tmp_path),
        "network": network.model_dump(mode="json"), "method": method.model_dump(mode="json"),
        "train": train_config.model_dump(mode="json"),
    }  # fmt: skip
    command = [sys.executable, "-c", textwrap.dedent(program), json.dumps(values)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    curves = []
    for num_threads in ("1", "2"):
        (file,) = (tmp_path / num_threads).glob("*.finished/curves.jsonl")
        curves.append([json.loads(line) for line in file.open()])
    assert len(curves[0]) == 6
    for one, two in zip(*curves, strict=True):
        near = 1e-5 if one["nimg"] <= 32 else 1e-4
        for name, value in one.items():
            if name == "loss" or "/" in name:
                assert value == pytest.approx(two[name], rel=near, abs=near), name
