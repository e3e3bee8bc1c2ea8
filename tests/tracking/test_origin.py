"""What a run is said to come from."""

import hashlib
import io
import subprocess
from pathlib import Path

from selfdistill.tracking.config import TrackingConfig, without_password, without_secrets
from selfdistill.tracking.origin import flattened, git_state, lock_file, numbers, origin_tags
from selfdistill.tracking.process import Reporter


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_an_edited_tree_is_dirty_and_a_new_file_does_not_make_it_so(tmp_path):
    assert git_state(tmp_path) == {}
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a")
    (tmp_path / "new").touch()
    assert git_state(tmp_path)["git_dirty"] == "false"
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path)["git_dirty"] == "true"


def test_parameters_become_dotted_keys():
    values = {"a": {"b": 1.0e-4, "c": [1, 2], "d": None}, "e": "text", "f": {}}
    assert flattened(values) == {
        "a.b": "0.0001", "a.c": "[1, 2]", "a.d": "null", "e": "text", "f": "{}"
    }  # fmt: skip


def test_spectra_are_no_metrics():
    line = {"loss": 1, "diagnostics": {"rank": 2.0, "spectrum": [1.0, 2.0]}}
    assert numbers(line, "train/") == {"train/loss": 1.0, "diagnostics/rank": 2.0}


def test_the_lock_of_the_family_is_hashed(tmp_path):
    assert lock_file(tmp_path, "row", None) == tmp_path / "pipelines.dvc/row/dvc.lock"
    lock = lock_file(tmp_path, "row", "tiny")
    lock.parent.mkdir(parents=True)
    lock.write_bytes(b"stages")
    assert (
        origin_tags(tmp_path, "row", "tiny")["dvc_lock_md5"] == hashlib.md5(b"stages").hexdigest()
    )
    assert "dvc_lock_md5" not in origin_tags(tmp_path, "row", "base")


def test_paths_of_tracking_yml_are_below_the_project(tmp_path):
    config = TrackingConfig.of_project({"uri": "sqlite:///a.db", "artifacts": "b"}, tmp_path)
    assert config.uri == f"sqlite:///{tmp_path}/a.db"
    assert config.artifacts == str(tmp_path / "b")
    absolute = TrackingConfig.of_project({"uri": "sqlite:////c/a.db"}, tmp_path)
    assert absolute.uri == "sqlite:////c/a.db"


def test_a_password_is_not_shown():
    assert without_password("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert without_password("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_a_password_is_not_said_by_mlflow_either():
    uri = "postgresql://me:se%24cret@host/db"
    text = f"{uri}: no me:se%24cret, nor se$cret, nor me"
    assert without_secrets(text, uri) == "postgresql://host/db: no ***, nor ***, nor me"
    assert without_secrets("token: tokens", "http://token@host") == "***: tokens"
    out = io.StringIO()
    Reporter(TrackingConfig(uri=uri), Path(), out).say(text)
    assert "cret" not in out.getvalue()


def commit(folder):
    git(folder, "commit", "--allow-empty", "-m", "a")
    return git_state(folder)["git_sha"]


def test_each_stage_has_the_commit_that_its_process_started_with(tmp_path, uri, found):
    git(tmp_path, "init")
    config = TrackingConfig(uri=uri, artifacts=str(tmp_path / "artifacts"))
    commits = []
    for stage, jobs in (("train", {}), ("plain", None)):
        reporter = Reporter(config, tmp_path, io.StringIO())
        commits.append(commit(tmp_path))
        reporter.take(
            "open", "row", env="tiny", key="key", params={}, tags={"row": "row"}, jobs=jobs,
            origin={"pipeline": stage}, scratch=str(tmp_path / "row/train"),
        )  # fmt: skip
        reporter.take("stage", "row", stage=stage)
        reporter.take("checkpoint", "row", job="job", nimg=8, curves=str(tmp_path / "none"))
        commit(tmp_path)
        reporter.send()
    (run,) = found().runs()
    tags = run.data.tags
    assert [tags["train.git_sha"], tags["plain.git_sha"]] == commits
    assert [tags["train.pipeline"], tags["plain.pipeline"]] == ["train", "plain"]
    assert tags["mlflow.source.git.commit"] == commits[0]
