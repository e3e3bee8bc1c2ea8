"""DVC at work on a copy of the project: what runs again, and that it makes the same bytes.

A row from images to metrics, and two cases of a study, which end with their training.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import yaml

from selfdistill.config_loader import merged

pytestmark = pytest.mark.xdist_group("dvc")  # what all start from takes a minute or two to make

TINY = "pipelines.dvc/tiny"
PARAMETERS = "pipelines.dvc/params/dvc.yaml"
NAIVE, DECOUPLED = (f"{TINY}/collapse_{case}/dvc.yaml" for case in ("naive", "decoupled"))
ROW = f"{TINY}/dsd_s/dvc.yaml"
# In a few steps.
SHORT = {
    "total_nimg": 192, "warmup_nimg": 64, "log_nimg": 64, "checkpoint_nimg": 64,
    "num_probe_images": 64,
}  # fmt: skip
FEW = {"num_steps": 2, "num_images": 40, "batch_size": 20, "shard_size": 10}
CHANGES = {
    "collapse_naive": {"train": SHORT},
    "collapse_decoupled": {"train": SHORT},
    "dsd_s": {
        "train": SHORT, "samplings": dict.fromkeys(("plain", "unshifted", "guided"), FEW)
    },
}  # fmt: skip


class Clone:
    """A copy of the project under git and DVC, with a cache and a remote of its own.

    Of the papers it has DSD alone: DVC reads the stages of all rows whenever it is called.
    """

    def __init__(self, project: Path, root: Path) -> None:
        self.root = root
        for name in ("src", "conf"):
            ignore = shutil.ignore_patterns("__pycache__", "local", "*.egg-info", "*.json")
            shutil.copytree(project / name, root / name, ignore=ignore)
        for env in ("base", "tiny"):
            for paper in ("sida", "ssd"):
                (root / "conf" / env / "parameters" / f"{paper}.yml").unlink()
            (root / "conf" / env / "parameters" / "figures.yml").write_text("figures: {}\n")
        for name in ("params.yaml", "requirements.lock", "pyproject.toml"):
            shutil.copyfile(project / name, root / name)
        for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore", ".telemetry"):
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(project / name, root / name)
        (root / "conf" / "local").mkdir()
        self.change()
        self.run("kedro", "dvc", "sync")
        self.run("git", "init", "-q", ".")
        self.commit("start")

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        mine = {"PATH": path, "PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"}
        who = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
        return os.environ | mine | {f"GIT_{name}": "nobody" for name in who}

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def repro(self, *targets: str) -> list[str]:
        """Return the stages that ran."""
        out = self.run("dvc", "repro", *targets)
        lines = [line for line in out.splitlines() if line.startswith("Running stage")]
        return [line.split("'")[1] for line in lines]

    def changed(self, *targets: str) -> set[str]:
        """Return the stages that DVC calls changed."""
        out = subprocess.run(
            ["dvc", "status", "--json", *targets],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return set(json.loads(out))

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.root / name
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))

    def change(self, **rows: dict) -> None:
        """Write down what these rows of tiny have beyond what all have here."""
        changes = json.dumps({"tiny": merged(CHANGES, rows)})
        (self.root / "params.yaml").write_text(yaml.safe_dump(json.loads(changes)))  # no anchors

    def locks(self) -> dict[str, dict]:
        """Return what was locked; stages stand there in the order in which they ran."""
        return {
            str(file.relative_to(self.root)): yaml.safe_load(file.read_text())
            for file in sorted(self.root.rglob("dvc.lock"))
        }


@pytest.fixture(scope="module")
def clone(project, tmp_path_factory):
    """The row and the two cases, made once by DVC and committed."""
    clone = Clone(project, tmp_path_factory.mktemp("clone") / "project")
    clone.made = clone.repro(ROW, NAIVE, DECOUPLED)
    assert {f"{TINY}/digits_32/dvc.yaml:{stage}" for stage in ("preprocess", "features")} <= {
        *clone.made
    }
    assert {f"{NAIVE}:train", f"{DECOUPLED}:train"} <= set(clone.made)
    stages = ("train", "sample_plain", "evaluate_plain", "sample_guided", "evaluate_guided")
    assert {f"{ROW}:{stage}" for stage in stages} <= set(clone.made)
    clone.commit("made")
    return clone


@pytest.fixture(autouse=True)
def restored(clone):
    """Whatever a test changed is put back."""
    yield
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q", "-f", check=False)  # what of all was never made


def test_what_is_made_is_up_to_date_and_runs_no_more(clone):
    assert clone.changed(ROW, NAIVE, DECOUPLED) == set()
    assert clone.repro(ROW, NAIVE, DECOUPLED) == []


def test_made_again_from_nothing_every_hash_is_the_same(clone):
    before = clone.locks()
    shutil.rmtree(clone.root / "data")
    shutil.rmtree(clone.root / ".dvc" / "cache")
    shutil.rmtree(clone.root / ".dvc" / "tmp")
    for file in (clone.root / "pipelines.dvc" / "code").glob("*.json"):
        file.unlink()
    for name in before:
        (clone.root / name).unlink()
    assert sorted(clone.repro(ROW, NAIVE, DECOUPLED)) == sorted(clone.made)
    assert clone.locks() == before


def test_a_changed_parameter_of_a_row_runs_that_rows_stages_alone(clone):
    clone.edit(
        "conf/tiny/parameters/studies.yml",
        "collapse_naive: *case",
        "collapse_naive: {<<: *case, method: {perceptual_network: lpips_random, ema_decay: 0.5}}",
    )
    assert clone.changed(f"{PARAMETERS}:tiny") == {f"{PARAMETERS}:tiny"}
    clone.run("dvc", "repro", "-q", f"{PARAMETERS}:tiny")
    assert clone.changed(NAIVE, DECOUPLED) == {f"{NAIVE}:train"}
    assert clone.repro(NAIVE, DECOUPLED) == [f"{NAIVE}:train"]


def test_a_changed_sampling_runs_that_sampling_and_shows_in_metrics_and_plots(clone, tmp_path):
    clone.change(dsd_s={"samplings": {"guided": {"num_steps": 3}}})
    ran = clone.repro(ROW)
    assert ran[0] == f"{PARAMETERS}:tiny"
    # The release's card has the numbers.
    assert sorted(ran[1:]) == [
        f"{ROW}:evaluate_guided", f"{ROW}:export", f"{ROW}:sample_guided",
    ]  # fmt: skip
    # Below it stands that other rows have no metrics yet.
    changes = json.loads(clone.run("dvc", "metrics", "diff", "--json").splitlines()[0])
    assert list(changes) == ["data/tiny/08_reporting/dsd_s/guided/metrics.json"]
    clone.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"), f"{TINY}/dsd_s/dvc.yaml")
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "dsd_s.curves: loss" in page
    assert "dsd_s/guided/grid.png" in page


def test_a_key_that_changes_no_bit_runs_nothing(clone):
    clone.change(dsd_s={"train": {"checkpoint_nimg": 192, "recompute_activations": True}})
    assert clone.repro(ROW) == [f"{PARAMETERS}:tiny"]


def test_check_fails_on_drift_and_names_the_file_and_the_remedy(clone):
    assert clone.run("kedro", "dvc", "check") == "up to date\n"
    clone.edit(ROW, "  evaluate_plain:", "  evaluate_plainly:")
    out = clone.run("kedro", "dvc", "check", check=False)
    assert f"Error: out of date: {ROW}; run kedro dvc sync and commit" in out


def test_a_key_of_base_that_tiny_replaces_changes_nothing_in_tiny(clone):
    clone.edit("conf/base/parameters/studies.yml", "  total_nimg: 2_562_048\n", "  total_nimg: 1\n")
    assert clone.repro(NAIVE, DECOUPLED) == [f"{PARAMETERS}:tiny"]


def test_an_experiment_changes_the_row_it_names(clone):
    """Through params.yaml: editing conf, DVC would write through its anchors into other rows."""
    out = clone.run("dvc", "exp", "run", "-S", "+tiny.collapse_naive.train.seed=4", NAIVE)
    assert "Ran experiment" in out
    assert clone.changed(DECOUPLED) == set()
    about = clone.root / "data/tiny/06_models/collapse_naive/checkpoint/checkpoint.json"
    assert json.loads(about.read_text())["train"]["seed"] == 4
    clone.run("git", "stash", "-q", "--include-untracked")
    clone.run("git", "stash", "drop", "-q")


def test_docstrings_and_unrelated_code_run_nothing_but_the_record_of_the_code(clone):
    file = clone.root / "src/selfdistill/methods/dsd.py"
    file.write_text(file.read_text() + "\n# A remark at the end.\n")
    (clone.root / "src/selfdistill/metrics/psnr.py").write_text('"""Another text."""\n')
    changed = clone.changed(NAIVE, DECOUPLED, "pipelines.dvc/code/dvc.yaml")
    assert not {name for name in changed if not name.startswith("pipelines.dvc/code/")}
    ran = clone.repro(NAIVE, DECOUPLED)
    assert ran == ["pipelines.dvc/code/dvc.yaml:train_dsd_dsd_vit"]


def test_an_edited_loss_runs_the_rows_of_its_method_and_no_images(clone):
    clone.edit(
        "src/selfdistill/methods/dsd.py",
        "return squared_error(v_pred, paths.velocity(target, eps))",
        "return 2 * squared_error(v_pred, paths.velocity(target, eps))",
    )
    program, *rows = clone.repro(NAIVE, DECOUPLED)
    assert program == "pipelines.dvc/code/dvc.yaml:train_dsd_dsd_vit"
    assert sorted(rows) == [f"{DECOUPLED}:train", f"{NAIVE}:train"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
def test_a_stage_ends_with_dvc(clone, running, number, shell):
    """Or the next `dvc repro` would find it at work on outputs that it removes."""
    mark = uuid.uuid4().hex
    clone.edit("conf/tiny/parameters/studies.yml", "total_nimg: 51_200", "total_nimg: 51_264")
    clone.change(collapse_naive={"train": {"total_nimg": 192_000}})
    states = clone.root / "data" / "tiny" / "scratch" / "collapse_naive" / "train"
    shutil.rmtree(states, ignore_errors=True)
    process = subprocess.Popen(
        ["dvc", "repro", NAIVE],
        cwd=clone.root,
        env=clone.environment() | {"MARK_OF_TEST": mark, "SHELL": shell},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not list(states.glob("*/state.pt")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(timeout=10)
    until = time.monotonic() + 10
    while (left := running(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def test_what_is_pushed_comes_back_from_the_remote(clone, tmp_path):
    clone.run("dvc", "remote", "add", "-q", "--local", "-d", "store", str(tmp_path / "store"))
    clone.run("dvc", "push", "-q", "--with-deps", NAIVE, DECOUPLED)
    shutil.rmtree(clone.root / "data")
    shutil.rmtree(clone.root / ".dvc" / "cache")
    clone.run("dvc", "pull", "-q", "--with-deps", NAIVE, DECOUPLED)
    assert clone.changed(NAIVE, DECOUPLED) == set()


def test_running_a_row_by_kedro_leaves_the_cache_as_it_is(clone):
    """Files of the workspace may be links into the cache: they are replaced, never written to."""
    cache = {
        file: file.read_bytes()
        for file in (clone.root / ".dvc" / "cache").rglob("*")
        if file.is_file()
    }
    clone.run("kedro", "run", "--env=tiny", "--pipelines=collapse_naive",
              "--params=collapse_naive.train.seed=9")  # fmt: skip
    assert clone.changed(NAIVE) == {f"{NAIVE}:train"}
    assert all(file.read_bytes() == content for file, content in cache.items())
    clone.run("dvc", "checkout", "-q", "-f", NAIVE)
    assert clone.changed(NAIVE) == set()


def test_a_stage_refuses_what_conf_local_changes(clone):
    local = clone.root / "conf" / "local" / "parameters"
    local.mkdir(parents=True)
    (local / "rows.yml").write_text("dsd_b: {train: {seed: 1}}\n")
    out = clone.run("dvc", "repro", "-s", "pipelines.dvc/cifar10_32/dvc.yaml:preprocess",
                    check=False)  # fmt: skip
    shutil.rmtree(local)
    assert "change dsd_b, which DVC does not see" in out
