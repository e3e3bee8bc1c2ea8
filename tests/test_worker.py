import json
import os
import signal
import subprocess
import sys

import pytest

from selfdistill.distributed import joined
from selfdistill.worker import main, resolve


def test_only_entry_points_of_stages_are_run():
    target = "selfdistill.pipelines.train.job:run"
    assert resolve(target) == ("selfdistill.pipelines.train.job", "run")
    refused = ["os:system", "selfdistill.files:write_json", "selfdistill.pipelines.trainer:run"]
    for other in [*refused, "selfdistill.pipelines.train.job:rmtree", target.removesuffix(":run")]:
        with pytest.raises(ValueError, match="is no entry point"):
            resolve(other)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_every_stage_that_starts_ranks_is_an_entry_point(project):
    pipelines = project / "src" / "selfdistill" / "pipelines"
    found = [file for file in pipelines.glob("*/*.py") if "\ndef run(" in file.read_text()]
    assert len(found) >= 6
    for file in found:
        module = f"selfdistill.pipelines.{file.parent.name}.{file.stem}"
        assert resolve(f"{module}:run") == (module, "run")


def test_a_rank_ends_with_its_parent():
    """The middle process starts a rank and is killed; the rank gets SIGTERM from the kernel."""
    rank = (
        "import os, signal, sys, time; from selfdistill.lifeline import die_with_parent;"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told', flush=True), os._exit(0)));"
        "die_with_parent(int(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    )
    middle = (
        "import os, subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {rank!r}, str(os.getpid())]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    assert process.stdout.readline() == "told\n"
    process.wait()


def test_a_rank_whose_parent_is_already_gone_ends_at_once():
    program = "from selfdistill.lifeline import die_with_parent; die_with_parent(1 << 22)"
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("at", "left"), [("", ["report.json"]), ("json.dump", [])])
def test_a_rank_that_is_killed_as_it_writes_its_report_leaves_none(tmp_path, at, left):
    """Torch elastic takes half a report for a fault of its own, and raises that one instead."""
    program = (
        "import os, json, signal; from selfdistill.distributed import reporting\n"
        "def half(report, file): file.write('{'); file.flush(); os.kill(os.getpid(), 9)\n"
        f"{at or 'unused'} = half\n"
        "@reporting\n"
        "def rank(): raise ValueError('no such file')\n"
        "rank()\n"
    )
    report = tmp_path / "report.json"
    environment = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(report)}
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, env=environment, capture_output=True
    )
    assert (done.returncode == -signal.SIGKILL) == bool(at)
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == left
    for file in left:
        said = json.loads((tmp_path / file).read_text())["message"]["message"]
        assert said == "ValueError: no such file"


def test_a_rank_that_joins_is_told_how_torchrun_has_to_be_started(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), joined(None):
        pass


def test_a_rank_without_job_or_join_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["selfdistill.pipelines.train.job:run"])
    assert "name the target, its spec and the device, or only: join" in capsys.readouterr().err
