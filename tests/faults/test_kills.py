"""Kill -9 at ten moments of a stage, then run again: the bytes of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from selfdistill.data.shard_job import find_faults

_LAG = 0.01  # seconds: a disk on which each flush and rename lasts


@pytest.fixture
def encode_of(teacher, tmp_path, shard_set):
    """Request a features run below a folder; 20 shards of 8 images, one by one."""
    rows = np.random.default_rng(0).integers(0, 256, (160, 16, 16, 3), dtype=np.uint8)
    images = shard_set(tmp_path / "given", rows, 8)

    def request(name, num_ranks=1, **machine):
        return {
            "stage": "features",
            "data": str(tmp_path / name),
            "images": str(images.path),
            "config": teacher.model_copy(update={"batch_size": 1}).model_dump(mode="json"),
            "machine": {"device": "cpu", "num_ranks": num_ranks, "num_workers": 1, **machine},
        }

    return request


def kill_at(server, request, condition, delay, check):
    """Run until a condition holds and a while has passed, then kill."""
    attempt = server.start(**request, slow_disk=_LAG)
    attempt.wait_or_end(lambda: condition(attempt))
    time.sleep(delay)
    attempt.kill()
    check()


def kill_ten_times(server, request, data, kind, seed):
    """Kill a run at moments from its start to its end; whatever is published is always whole."""
    scratch, place = data / "scratch" / kind, data / kind
    chance = random.Random(seed)

    def complete(num):
        return lambda _: len(list(scratch.glob("*/shard-*.arrow"))) >= num

    def has(pattern):
        return lambda _: any(scratch.glob(pattern))

    def check():
        assert not place.exists() or find_faults(place, 1) == []

    moments = [
        (lambda _: True, chance.uniform(0, 0.05)),  # at the very start
        (lambda _: scratch.exists(), chance.uniform(0, 0.1)),
        (has("*/.shard-*.arrow.tmp"), chance.uniform(0, 0.02)),  # a shard is begun
        (complete(3), chance.uniform(0, 0.05)),
        (complete(8), chance.uniform(0, 0.05)),
        (complete(13), chance.uniform(0, 0.05)),
        (complete(19), 0),
        (has("*/.manifest.parquet.*.tmp"), chance.uniform(0, 0.01)),
        (has("*/.manifest.json.*.tmp"), chance.uniform(0, 0.01)),
        (lambda _: place.exists(), 0),  # published, and not yet tidied up
    ]
    for condition, delay in moments:
        kill_at(server, request, condition, delay, check)
    assert place.exists()
    # The stage starts anew now; the old set is moved aside when the new one is whole.
    kill_at(server, request, lambda _: any(data.glob(f".{kind}.*.tmp")), 0, lambda: None)


def test_ten_kills_of_preprocess_change_no_byte(server, run_of, tmp_path, contents, leftovers):
    kill_ten_times(server, run_of("broken"), tmp_path / "broken", "images", 0)
    server.run(**run_of("broken"))
    server.run(**run_of("whole"))
    assert leftovers(tmp_path) == []
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole" / "images")) == 42


def test_ten_kills_of_feature_caching_change_no_byte(
    server, encode_of, tmp_path, contents, leftovers
):
    kill_ten_times(server, encode_of("broken"), tmp_path / "broken", "features", 1)
    server.run(**encode_of("broken"))
    server.run(**encode_of("whole"))
    assert leftovers(tmp_path) == []
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole" / "features")) == 42


def test_killed_run_of_two_ranks_leaves_no_rank_and_no_byte_changes(
    server, encode_of, tmp_path, contents, leftovers
):
    attempt = server.start(**encode_of("broken", num_ranks=2))
    attempt.wait_or_end(lambda: len(list(tmp_path.glob("broken/**/shard-*.arrow"))) >= 2)
    assert len(attempt.descendants) >= 2
    attempt.kill()  # ... and sees its ranks end
    server.run(**encode_of("broken"))
    server.run(**encode_of("whole"))
    assert leftovers(tmp_path) == []
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_vanished_worker_of_preprocess_is_named_and_the_next_run_goes_on(
    server, run_of, tmp_path, contents, leftovers, kill_worker
):
    attempt = server.start(**run_of("broken"))
    attempt.wait_or_end(lambda: any(tmp_path.glob("broken/scratch/images/*/shard-*.arrow")))
    kill_worker(attempt.pid)
    assert attempt.wait() == 1
    assert attempt.error.startswith("ChildProcessError: a process that worked on files was killed")
    assert "what is finished is kept" in attempt.error
    assert not (tmp_path / "broken" / "images").exists()
    done = {path: path.stat().st_ino for path in tmp_path.glob("broken/**/shard-*.arrow")}
    assert done
    server.run(**run_of("broken"))
    place = tmp_path / "broken" / "images"
    assert all((place / path.name).stat().st_ino == inode for path, inode in done.items())
    server.run(**run_of("whole"))
    assert leftovers(tmp_path) == []
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_vanished_rank_is_named_and_the_next_run_goes_on(server, encode_of, tmp_path):
    attempt = server.start(**encode_of("broken", num_ranks=2, max_restarts=0))
    attempt.wait_or_end(lambda: any(tmp_path.glob("broken/**/shard-*.arrow")))
    os.kill(attempt.descendants[-1], signal.SIGKILL)
    assert attempt.wait() == 1
    assert attempt.error.startswith("ChildProcessError: ")
    assert "run again" in attempt.error
    server.run(**encode_of("broken"))


def test_killed_repair_leaves_nothing_behind_in_the_published_set(
    server, run_of, tmp_path, contents, leftovers
):
    server.run(**run_of("set"))
    place = tmp_path / "set" / "images"
    before = contents(place)
    for shard in (2, 11):
        (place / f"shard-{shard:05d}.arrow").write_bytes(b"damaged")
    repair = run_of("set", "repair_images")
    attempt = server.start(**repair, slow_disk=0.1)
    attempt.wait_or_end(lambda: any(place.glob(".shard-*.tmp")))
    attempt.kill()
    server.run(**repair)
    assert contents(place) == before
    assert leftovers(tmp_path) == []


def test_kill_while_a_set_is_copied_to_another_file_system_changes_no_byte(
    server, run_of, disk_of, tmp_path, contents, leftovers
):
    disk = disk_of("size=20m")
    request = {**run_of("broken"), "scratch": str(disk.path / "scratch")}
    place = tmp_path / "broken" / "images"
    for _ in range(2):
        attempt = server.start(**request, slow_disk=_LAG)
        attempt.wait_or_end(lambda: any(tmp_path.glob("broken/.images.*.tmp/shard-*")))
        attempt.kill()
        assert not place.exists()
    server.run(**request)
    server.run(**run_of("whole"))
    assert contents(place) == contents(tmp_path / "whole" / "images")
    assert leftovers(tmp_path) == []


def test_vanished_worker_ends_the_command_with_one_line(project, conf, kill_worker):
    conf.change("tiny/parameters/distributed.yml", {"distributed": {"num_workers": 2}})
    command = [sys.executable, "-m", "selfdistill", "run", "--env=tiny"]
    run = subprocess.Popen(
        [*command, "--pipelines=preprocess_digits_32", f"--conf-source={conf.path}"],
        cwd=project,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    kill_worker(run.pid)
    _, log = run.communicate()
    assert run.returncode == 1
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if line.startswith("Error: ")]
    assert "a process that worked on files was killed" in line
