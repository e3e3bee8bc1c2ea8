"""An MLflow that is down, locked, full, broken or silent: the run goes on, and says so once."""

import logging
import os
import socket
import sqlite3
import subprocess
import time

import pytest

_PATIENCE = 180.0  # seconds until something that does not happen is given up


@pytest.fixture
def warnings(caplog):
    def said():
        return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]

    return said


def wait_for(condition):
    until = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.05)


def train_and_evaluate(start, warnings, **tracking):
    """Run a row's stages, which go on for a while after the warning."""
    stages = start(**tracking)
    stages.start_training("dsd_s")
    stages.write_line("dsd_s", 8)
    wait_for(warnings)
    time.sleep(1.0)  # attempts enough to warn again
    stages.write_line("dsd_s", 16)
    stages.end_training("dsd_s")
    stages.evaluate("dsd_s", fd_tiny=2.0)
    stages.end()


def test_a_server_that_is_down_is_said_once(start, warnings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        train_and_evaluate(start, warnings, uri=uri)
    (warning,) = warnings()
    assert uri in warning
    assert "conf/tiny/tracking.yml" in warning


def test_a_server_that_never_answers_is_said_once_and_is_not_waited_for(start, warnings):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}"
        stages = start(uri=uri, patience=0.5)
        stages.evaluate("dsd_s", fd_tiny=2.0)
        stages.end()
    (warning,) = warnings()
    assert "patience in tracking.yml" in warning
    assert "secret" not in warning


def test_a_locked_database_is_said_once_and_gets_everything_when_it_is_free(
    start, warnings, found, uri
):
    database = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    stages = start()
    stages.start_training("dsd_s")
    stages.write_line("dsd_s", 8)
    wait_for(warnings)
    stages.write_line("dsd_s", 16)
    stages.end_training("dsd_s")
    stages.evaluate("dsd_s", fd_tiny=2.0)
    database.execute("ROLLBACK")
    database.close()
    stages.end()
    (warning,) = warnings()
    assert "database is locked" in warning
    (run,) = found().runs()
    assert found().steps(run) == [8, 16]
    assert run.data.metrics["plain/fd_tiny"] == 2.0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB: less than MLflow's tables take."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_once_and_leaves_no_half_database(start, warnings, small_disk):
    train_and_evaluate(start, warnings, uri=f"sqlite:///{small_disk}/mlflow.db")
    (warning,) = warnings()
    assert "disk is full" in warning
    assert list(small_disk.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_of_artifacts_is_said_once(start, warnings, small_disk, found):
    (small_disk / "else").write_bytes(bytes(300 << 10))
    stages = start(artifacts=str(small_disk / "artifacts"))
    stages.start_training("dsd_s")
    for nimg in (8, 16):
        stages.write_line("dsd_s", nimg)
    stages.end_training("dsd_s")
    stages.evaluate("dsd_s", fd_tiny=2.0)
    stages.end()
    (warning,) = warnings()
    assert "No space left on device" in warning
    (run,) = found().runs()
    assert run.info.status == "FINISHED"
    assert found().steps(run) == [8, 16]
    assert run.data.metrics["plain/fd_tiny"] == 2.0


def test_an_mlflow_that_cannot_be_imported_is_said_once(start, warnings, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/mlflow.py").write_text("raise ImportError('mlflow is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    train_and_evaluate(start, warnings)
    (warning,) = warnings()
    assert "mlflow is broken" in warning


def test_a_tracking_process_that_is_killed_is_said_once(start, warnings):
    stages = start()
    stages.start_training("dsd_s")
    stages.hooks._process._process.kill()
    stages.hooks._process._process.wait()
    stages.write_line("dsd_s", 8)
    stages.end_training("dsd_s")
    stages.evaluate("dsd_s", fd_tiny=2.0)
    stages.end()
    assert len(warnings()) == 1


@pytest.mark.slow
def test_the_first_run_makes_the_database(start, found, tmp_path):
    place = f"sqlite:///{tmp_path}/folder/new.db"
    stages = start(uri=place)
    stages.evaluate("dsd_s", fd_tiny=2.0)
    stages.end()
    (run,) = type(found())(place).runs()
    assert run.data.metrics["plain/fd_tiny"] == 2.0
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["new.db"]
