"""One MLflow run of a row's run, whatever the processes that it is made by."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project


def test_curves_arrive_while_the_training_goes_on(start, found):
    stages = start()
    stages.start_training("dsd_s")
    stages.write_line("dsd_s", 8, **{"student/reconstruction": 0.5})
    found().wait(lambda mlflow: mlflow.steps(mlflow.runs()[0]) == [8])
    stages.write_line("dsd_s", 16)
    found().wait(lambda mlflow: mlflow.steps(mlflow.runs()[0]) == [8, 16])
    (run,) = found().runs()
    assert run.info.status == "RUNNING"
    assert run.data.metrics["train/student/reconstruction"] == 0.5
    assert run.data.metrics["diagnostics/rank_target"] == 7.5
    assert run.data.metrics["speed/images_per_second"] == 10.0


def test_stages_of_separate_processes_are_one_run(start, found):
    first = start()
    first.start_training("dsd_s")
    first.write_line("dsd_s", 8)
    first.end_training("dsd_s")
    first.end()
    second = start()
    second.evaluate("dsd_s", fd_tiny=2.0)
    second.end()
    mlflow = found()
    (run,) = mlflow.runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["plain/fd_tiny"] == 2.0
    assert run.data.metrics["plain/fd_tiny_std"] == 0.5
    assert run.data.params["train.optimizer.lr"] == "0.004"
    assert run.data.params["dataset.preprocess.resolution"] == "32"
    assert {"row": "dsd_s", "env": "tiny", "checkpoint": "job"}.items() <= run.data.tags.items()
    origin = {f"{stage}.{key}" for stage in ("train", "plain") for key in ("host", "pipeline")}
    assert origin <= run.data.tags.keys()
    assert mlflow.steps(run) == [8]
    artifacts = [
        file.path
        for folder in ("plain", "train")
        for file in mlflow.client.list_artifacts(run.info.run_id, folder)
    ]
    assert artifacts == ["plain/grid.png", "plain/metrics.json", "train/curves.jsonl"]


def test_a_signal_to_every_process_of_a_job_leaves_the_tracker_to_tell_its_end(start, found):
    stages = start()
    stages.start_training("dsd_s")
    stages.write_line("dsd_s", 8)
    found().wait(lambda mlflow: mlflow.steps(mlflow.runs()[0]) == [8])
    stages.hooks._process._process.send_signal(signal.SIGTERM)
    stages.end_training("dsd_s")
    stages.end()
    assert found().runs()[0].info.status == "FINISHED"


@pytest.mark.slow
def test_two_rows_in_one_process_are_two_runs(start, found):
    stages = start()
    for row in ("dsd_s", "dsd_m"):
        stages.start_training(row)
        stages.write_line(row, 8)
        stages.end_training(row)
    stages.end()
    assert [run.info.run_name for run in found().runs()] == ["dsd_s", "dsd_m"]


def test_a_resumed_training_goes_on_with_its_run_and_repeats_no_point(start, found):
    first = start()
    first.start_training("dsd_s")
    for nimg in (8, 16, 24):
        first.write_line("dsd_s", nimg)
    found().wait(lambda mlflow: mlflow.steps(mlflow.runs()[0]) == [8, 16, 24])
    first.die()
    assert found().runs()[0].info.status == "KILLED"

    (first.scratch("dsd_s") / "job/curves.jsonl").unlink()  # back to the last saved state
    second = start({"dsd_s.train.micro_batch_size": 32})  # on another machine
    second.start_training("dsd_s")
    for nimg in (8, 16, 24, 32):
        second.write_line("dsd_s", nimg)
    second.end_training("dsd_s")
    second.end()
    (run,) = found().runs()
    assert found().steps(run) == [8, 16, 24, 32]
    assert found().steps(run, "speed/images_per_second") == [8, 16, 24, 32]
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_row_trained_anew_is_a_new_run(start, found):
    for changes in ({}, {}, {"dsd_s.train.seed": 1}):
        stages = start(changes)
        stages.start_training("dsd_s")
        stages.write_line("dsd_s", 8)
        stages.end_training("dsd_s")
        stages.end()
    assert [found().steps(run) for run in found().runs()] == [[8]] * 3


@pytest.mark.slow
def test_an_interrupted_training_of_other_code_is_another_run(start, found):
    first = start()
    first.start_training("dsd_s")
    first.write_line("dsd_s", 8, job="old")
    found().wait(lambda mlflow: mlflow.steps(mlflow.runs()[0]) == [8])
    first.die()
    second = start()
    second.start_training("dsd_s")
    second.write_line("dsd_s", 8, job="new")
    second.end_training("dsd_s", job="new")
    second.end()
    assert [run.info.status for run in found().runs()] == ["KILLED", "FINISHED"]


@pytest.mark.slow
def test_a_lost_ledger_starts_a_new_run_that_has_the_curves(start, found, tmp_path):
    first = start()
    first.start_training("dsd_s")
    first.write_line("dsd_s", 8)
    first.end_training("dsd_s")
    first.end()
    (tmp_path / "scratch/dsd_s/tracking.json").unlink()
    second = start()
    second.evaluate("dsd_s", fd_tiny=2.0)
    second.end()
    assert [found().steps(run) for run in found().runs()] == [[8], [8]]


def test_a_failed_stage_is_a_failed_run(start, found):
    stages = start()
    stages.start_training("dsd_s")
    stages.fail()
    (run,) = found().runs()
    assert run.info.status == "FAILED"
    assert run.data.params["train.total_nimg"] == "48000"


@pytest.mark.slow
def test_a_killed_run_is_said_to_be_killed_and_leaves_no_process(start, found, tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from selfdistill.tracking.config import TrackingConfig
        from selfdistill.tracking.hooks import TrackingProcess
        config = TrackingConfig.model_validate_json(sys.argv[1])
        process = TrackingProcess(config, Path(), print)
        message = {"do": "open", "row": "row", "env": None, "key": "k", "params": {}, "tags": {}}
        message["origin"] = {}
        process.send({**message, "scratch": sys.argv[2], "jobs": None})
        print(process._process.pid, flush=True)
        time.sleep(600)
    """
    config = start().hooks._config.model_dump_json()
    arguments = [sys.executable, "-c", textwrap.dedent(code), config]
    trackers = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        place = str(tmp_path / number.name / "train")
        with subprocess.Popen([*arguments, place], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            trackers.append(int(process.stdout.readline()))
            num_runs = len(trackers)
            found().wait(lambda mlflow, num=num_runs: len(mlflow.runs()) == num)
            process.send_signal(number)
    found().wait(lambda mlflow: [run.info.status for run in mlflow.runs()] == ["KILLED"] * 3)
    found().wait(lambda _: not any(Path(f"/proc/{tracker}").exists() for tracker in trackers))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"urii": "x"}, r"tracking\.yml: urii: Extra inputs"),
        ({"uri": "mlruns"}, "uri: 'mlruns' is neither a server nor a database"),
        ({"uri": "me:secret@host"}, "uri: 'host' is neither a server nor a database"),
        ({"uri": "http://me:a]@host"}, "uri: Invalid IPv6 URL"),
    ],
)
def test_a_mistake_in_tracking_yml_stops_the_run_and_is_named(start, wrong, message):
    with pytest.raises(ValueError, match=message):
        start(**wrong)


def test_tracking_that_is_off_imports_no_mlflow_and_starts_no_process(conf, project):
    code = """
        import sys
        from pathlib import Path
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project
        from selfdistill.tracking.hooks import TrackingProcess
        TrackingProcess.__init__ = None
        bootstrap_project(Path(sys.argv[1]))
        with KedroSession.create(sys.argv[1], env="tiny", conf_source=sys.argv[2]) as session:
            session.run(pipeline_names=["preprocess_digits_32"])
        print([name for name in sys.modules if name.partition(".")[0] == "mlflow"])
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(project), str(conf.path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_row_of_a_real_run_is_tracked(conf, project, uri, found):
    train = {"total_nimg": 256, "log_nimg": 128, "checkpoint_nimg": 128}
    sampling = {"num_steps": 2, "num_images": 20, "batch_size": 10, "shard_size": 10}
    row = {"network": {"width": 32, "depth": 3}, "train": train, "samplings": {"plain": sampling}}
    conf.change("tiny/parameters/dsd.yml", {"dsd_s": row})
    tracking = {"enabled": True, "uri": uri, "interval": 0.2, "patience": 60.0}
    conf.change("tiny/tracking.yml", tracking | {"artifacts": str(conf.data / "artifacts")})
    bootstrap_project(project)
    for goal in ("dsd_s.curves", "dsd_s.plain.metrics"):
        with KedroSession.create(project, env="tiny", conf_source=str(conf.path)) as session:
            session.run(pipeline_names=["dsd_s"], to_outputs=[goal], only_missing_outputs=True)
    (run,) = found().runs()
    assert run.info.status == "FINISHED"
    assert found().steps(run) == [128, 256]
    assert {"plain/fd_tiny", "plain/class_accuracy"} <= run.data.metrics.keys()


def test_a_killed_run_leaves_no_process_and_never_imports_mlflow(
    conf, project, uri, found, running, tmp_path
):
    sizes = {"width": 32, "depth": 3}
    row = {"network": sizes, "train": {"log_nimg": 128, "checkpoint_nimg": 128}}
    conf.change("tiny/parameters/dsd.yml", {"dsd_s": row})
    conf.change("tiny/tracking.yml", {"enabled": True, "uri": uri, "interval": 0.2})
    mark = str(tmp_path)
    command = [sys.executable, "-X", "importtime", "-m", "selfdistill", "run", "--env=tiny"]
    with (tmp_path / "imports").open("w") as imports:
        process = subprocess.Popen(
            [*command, "--pipelines=dsd_s", f"--conf-source={conf.path}"],
            cwd=project,
            env=os.environ | {"MARK_OF_TEST": mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=imports,
        )
        found().wait(lambda mlflow: mlflow.steps(mlflow.runs()[0]) or process.poll() is not None)
    assert len(running(mark)) > 1
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while running(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert running(mark) == []
    (run,) = found().runs()
    assert run.info.status == "KILLED"
    lines = (tmp_path / "imports").read_text().splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "selfdistill" in imported
    assert "mlflow" not in imported
