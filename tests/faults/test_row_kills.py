"""A row from raw images to its release, ended at random moments, then run again."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

# Signals, and the exit codes of a run that they end: at once, or in a training that saves first. An
# interrupted command of click's returns 1.
SIGNALS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM},
    signal.SIGINT: {-signal.SIGINT, 128 + signal.SIGINT, 1},
}
SMALL = {
    "dsd_s": {
        "train": {
            "total_nimg": 1_280,
            "warmup_nimg": 320,
            "log_nimg": 320,
            "checkpoint_nimg": 320,
            "num_probe_images": 64,
        },
        "samplings": {
            name: {"num_steps": 2, "num_images": 40, "batch_size": 20, "shard_size": 10}
            for name in ("plain", "unshifted", "guided")
        },
    },
}


class Row:
    """`kedro run` of a small dsd_s, below a folder of its own."""

    def __init__(self, project: Path, conf, num_ranks: int) -> None:
        conf.change("tiny/parameters/dsd.yml", SMALL)
        conf.change("tiny/parameters/distributed.yml", {"distributed": {"num_ranks": num_ranks}})
        self.project, self.conf = project, conf

    def start(self, mark: str) -> subprocess.Popen:
        # What is published is not made again: a run goes on from there.
        return subprocess.Popen(
            [
                sys.executable, "-m", "selfdistill", "run", "--env=tiny", "--pipelines=dsd_s",
                "--only-missing-outputs", f"--conf-source={self.conf.path}",
            ],
            cwd=self.project,
            env=os.environ | {"MARK_OF_TEST": mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self) -> float:
        """Run to the end; return the seconds it took."""
        start = time.monotonic()
        assert self.start("whole").wait() == 0
        return time.monotonic() - start

    def files(self) -> dict[str, bytes]:
        """Return all that is published, by path."""
        root = self.conf.data
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and not _is_hidden(path.relative_to(root))
        }

    def wipe(self) -> None:
        shutil.rmtree(self.conf.data)


def _is_hidden(path: Path) -> bool:
    """Tell what is unfinished: scratch, and temporary names."""
    return path.parts[0] == "scratch" or any(part.startswith(".") for part in path.parts)


def kill_and_run_again(row: Row, running, num_kills: int, seed: int) -> None:
    """End runs at random moments, each with a run after it; compare with the unbroken run."""
    row.run()  # what is cold is slower
    whole = row.files()
    row.wipe()
    seconds = row.run()
    assert row.files() == whole
    chance = random.Random(seed)
    for sent in itertools.islice(itertools.cycle(SIGNALS), num_kills):
        row.wipe()
        mark = uuid.uuid4().hex
        process = row.start(mark)
        time.sleep(chance.uniform(0, 0.9 * seconds))
        assert process.poll() is None, "the run had ended before it could be killed"
        process.send_signal(sent)
        until = time.monotonic() + 10
        assert process.wait(timeout=60) in SIGNALS[sent]
        while (orphans := running(mark)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not orphans, f"{sent.name} left {orphans} running"
        for name, content in row.files().items():
            assert content == whole[name], f"{name} is not whole after {sent.name}"
        row.run()
        assert row.files() == whole


def test_a_row_ended_by_each_signal_comes_out_the_same(project, conf, running):
    kill_and_run_again(Row(project, conf, num_ranks=1), running, num_kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_row_ended_twenty_times_comes_out_the_same(project, conf, running, num_ranks):
    kill_and_run_again(Row(project, conf, num_ranks), running, num_kills=20, seed=num_ranks)
