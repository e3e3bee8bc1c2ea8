"""The training benchmark on a minute row: what it takes apart is the step, whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

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
