"""Benchmarks on minute data: a step taken apart is whole, rivals hold the same images."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

WITHOUT_PRODUCTS = {"augmentation, draws", "losses"}


@pytest.fixture
def train_step(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, on row dsd_b as small as a test needs it, writing into `tmp_path`."""
    monkeypatch.syspath_prepend(str(project / "benchmarks"))
    import train_step

    parameters = project / "conf" / "base" / "parameters"
    row = yaml.safe_load((parameters / "dsd.yml").read_text(encoding="utf-8"))["dsd_b"]
    row["data"] = "digits"
    row["network"] |= {
        "width": 32, "depth": 3, "num_heads": 2, "resolution": 32, "patch_size": 8,
        "teacher_dim": 64,
    }  # fmt: skip
    row["method"]["perceptual_network"] = "lpips_random"
    teachers = (project / "conf" / "tiny" / "parameters" / "teachers.yml").read_text()
    (teacher,) = yaml.safe_load(teachers)["teachers"]
    (tmp_path / "dsd.yml").write_text(yaml.safe_dump({"dsd_b": row}))
    (tmp_path / "datasets.yml").write_text(yaml.safe_dump({"digits": {"teacher": teacher}}))
    (tmp_path / "teachers.yml").write_text(teachers)
    monkeypatch.setattr(train_step, "PARAMETERS", tmp_path)
    monkeypatch.setattr(train_step, "RESULTS", tmp_path / "results")
    return train_step


def test_parts_leave_the_gradient_of_the_step(train_step):
    step = train_step.Step(train_step.read_row("dsd_b", train_step.PARAMETERS), 4, "cpu")
    network = step.method.network
    step.backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    runs = train_step.Parts(step).runs()
    assert runs.keys() == set(train_step.PARTS)
    for _ in range(2):  # a second round must not start from what the first one left
        network.zero_grad(set_to_none=True)
        for name, run in runs.items():
            if name not in train_step.UPDATES:
                run()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_flop_of_the_parts_are_those_of_the_step(train_step):
    flops = train_step.count_flops(train_step.read_row("dsd_b", train_step.PARAMETERS))
    parts = {name: flops[name] for name in train_step.PARTS if name not in train_step.UPDATES}
    assert min(parts[name] for name in parts.keys() - WITHOUT_PRODUCTS) > 0
    assert sum(parts.values()) == pytest.approx(flops["step"], rel=0.01)


def test_dsd_b_takes_as_many_flop_as_estimated_by_hand(train_step, project):
    row = train_step.read_row("dsd_b", project / "conf" / "base" / "parameters")
    flops = train_step.count_flops(row)
    # Two trained passes, one averaged, heads, LPIPS and the teacher.
    assert flops["step"] + flops["teacher"] == pytest.approx(0.89e12, rel=0.05)


def test_benchmark_writes_what_it_prints(train_step, capsys):
    train_step.main(["--repeats", "1", "--compare-muon"])
    page = (train_step.RESULTS / "train_step_cpu.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    result = json.loads((train_step.RESULTS / "train_step_cpu.json").read_text())
    assert {"date", "commit", "cpu", "threads"} <= result["about"].keys()
    row = result["rows"]["dsd_b"]
    timed = {*train_step.PARTS, "loss", "step", "teacher"}
    assert row["seconds"].keys() == timed == row["flops"].keys()
    numbers = [
        row[name]
        for name in (
            "images_per_s", "peak_memory_gib", "peak_flops", "utilisation", "hidden_work",
            "hidden_work_of_loss", "sum_of_parts_seconds",
        )
    ]  # fmt: skip
    assert min(*numbers, *row["seconds"].values()) > 0
    assert row["sampling"]["guided_by_plain"] > 0
    assert row["optimizers"]["muon_ratio"] > 0


def test_benchmark_needs_no_kedro(project):
    code = "import sys; sys.modules['kedro'] = None; import train_step"
    path = os.pathsep.join(map(str, (project / "benchmarks", project / "src")))
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


@pytest.fixture
def raw_images(tmp_path: Path) -> Path:
    """Twelve small JPEGs, wide and tall, in three class folders."""
    rng = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "raw" / f"class_{number % 3}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (40 + 9 * number, 150 - 9 * number, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file)
    return tmp_path / "raw"


@pytest.fixture
def import_benchmark(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ModuleType]:
    """Import a benchmark that writes into `tmp_path`."""
    monkeypatch.syspath_prepend(str(project / "benchmarks"))

    def imported(name: str) -> ModuleType:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
        return module

    return imported


def written(module: ModuleType, name: str, printed: str) -> dict[str, Any]:
    """Return what a benchmark found; its page is what it printed, and names no place."""
    page = (module.RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert page in printed
    assert str(module.RESULTS.parent) not in page
    result = json.loads((module.RESULTS / f"{name}.json").read_text())
    assert {"date", "commit", "cpu", "threads", "cores"} <= result["about"].keys()
    return result


def test_preprocess_benchmark_packs_what_the_zip_holds(import_benchmark, raw_images, capsys):
    preprocess = import_benchmark("preprocess")
    options = ["--num", "20", "--size", "32", "--shard-size", "8", "--rounds", "1"]
    preprocess.main(["--images", str(raw_images), *options])
    result = written(preprocess, "preprocess", capsys.readouterr().out)
    assert result["speed"]["same_pixels"]
    assert result["speed"]["seconds"].keys() == {"zip", "workers_0", "workers_2"}
    assert min(*result["speed"]["seconds"].values(), *result["parts"]["shards"].values()) > 0


def test_memory_benchmark_sees_parent_workers_and_loading(import_benchmark, capsys):
    preprocess = import_benchmark("preprocess")
    preprocess.main(["--memory", "--sizes", "300"])
    (found,) = written(preprocess, "preprocess_memory", capsys.readouterr().out)["memory"]
    for process in ("parent", "worker", "loading"):
        assert 10 < found[process]["anonymous"] < found[process]["peak"]
    assert found["loading"]["late"] < 1.2 * found["loading"]["early"]


def test_loader_benchmark_reads_what_the_zip_holds(
    import_benchmark, train_step, raw_images, capsys, monkeypatch
):
    loader = import_benchmark("loader")
    monkeypatch.setattr(loader, "PARAMETERS", train_step.PARAMETERS)
    options = ["--num", "40", "--batch", "16", "--rounds", "2", "--rows", "dsd_b"]
    loader.main(["--images", str(raw_images), *options])
    result = written(loader, "loader", capsys.readouterr().out)
    assert result["reads"]["same_pixels"]
    assert min(each["images_per_s"] for each in result["loading"]) > 0
    needs = result["rows"]["dsd_b"]
    assert min(each["headroom"] for each in needs["gpus"]) > 0
    # 32 x 32 pixels; 16 tokens of width 64 in both orientations, int8 with a scale of 4 bytes.
    image, tokens = 3 * 32**2, 2 * 16 * 64
    sizes = {"float16": image + 2 * tokens, "int8": image + tokens + 2 * 16 * 4, "online": image}
    assert needs["bytes_of_dataset"] == {name: 1_281_167 * each for name, each in sizes.items()}
