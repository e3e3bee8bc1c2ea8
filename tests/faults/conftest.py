"""Runs that can be killed, disks that can be filled, and what is looked at afterwards."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfdistill.data.config import PreprocessConfig
from selfdistill.networks.teacher_config import FeatureCacheConfig, TeacherConfig

_SERVER = Path(__file__).with_name("server.py")
_PATIENCE = 180.0  # seconds until a run that does nothing is given up


def _alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and not been waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _command_of(pid: int) -> str:
    """Return the command line of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _descendants(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        texts = [(task / "children").read_text() for task in tasks]
    except (FileNotFoundError, ProcessLookupError):
        return []
    children = [int(child) for text in texts for child in text.split()]
    return [*children, *(below for child in children for below in _descendants(child))]


def wait_until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition and return what it gave."""
    until = time.monotonic() + _PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.0005)
    return found


class Attempt:
    """A run in a process of its own."""

    def __init__(self, server: "Server", pid: int, log: Path) -> None:
        self.pid, self._server, self._log = pid, server, log

    @property
    def runs(self) -> bool:
        return _alive(self.pid)

    @property
    def descendants(self) -> list[int]:
        return _descendants(self.pid)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def error(self) -> str:
        """The last line of the log: kind and message of what ended the run."""
        return self.log.rstrip().rpartition("\n")[2]

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        wait_until(lambda: not self.runs)
        return self._server.ask({"wait": self.pid})

    def wait_or_end(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition, or for the end of the run."""
        wait_until(lambda: condition() or not self.runs)

    def kill(self) -> None:
        """Kill the process alone, -9; its descendants have to end by themselves."""
        assert self.runs, self.log
        below = self.descendants
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL
        wait_until(lambda: not any(map(_alive, below)))


class Server:
    """Starts runs: a process that has imported everything and forks."""

    def __init__(self, log: Path) -> None:
        self._log, self._num = log, 0
        self._process = subprocess.Popen(
            [sys.executable, str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(_SERVER.parents[2] / "src"),
            },
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return int(self._process.stdout.readline())

    def start(self, **request: Any) -> Attempt:
        self._num += 1
        log = self._log / f"{self._num}.log"
        log.touch()
        return Attempt(self, self.ask({**request, "log": str(log)}), log)

    def run(self, **request: Any) -> Attempt:
        """Run to the end, which has to be a good one."""
        attempt = self.start(**request)
        assert attempt.wait() == 0, attempt.log
        return attempt

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts runs."""
    if not Path("/proc/self/task").exists():
        pytest.skip("reads /proc")
    server = Server(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def wait() -> Callable[[Callable[[], Any]], Any]:
    """Wait for a condition."""
    return wait_until


@pytest.fixture(scope="session")
def kill_worker() -> Callable[[int], None]:
    """Wait for a process of a run's pool and kill it, -9."""

    def kill(pid: int) -> None:
        def workers() -> list[int]:
            return [each for each in _descendants(pid) if "spawn_m" in _command_of(each)]

        os.kill(wait_until(workers)[-1], signal.SIGKILL)

    return kill


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, hidden ones too, and its bytes."""

    def read(root: Path) -> dict[str, bytes]:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def leftovers() -> Callable[[Path], list[str]]:
    """What writers have left below a folder."""

    def find(root: Path) -> list[str]:
        return [str(path) for path in root.rglob(".*.tmp")]

    return find


@pytest.fixture(scope="session")
def states() -> Callable[[Path], dict[str, tuple[int, int]]]:
    """Inode and time of every file of a set: what was written anew has others."""

    def look(root: Path) -> dict[str, tuple[int, int]]:
        found = {path.name: path.stat() for path in root.iterdir()}
        return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}

    return look


def png(seed: int, side: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # equal sides, equal lengths
    return file.getvalue()


@pytest.fixture(scope="session")
def small_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small images in 3 classes, one of them broken."""
    root = tmp_path_factory.mktemp("small") / "raw"
    for number in range(60):
        file = root / f"class_{number % 3}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number, 36))
    broken = root / "class_0" / "06.png"
    broken.write_bytes(broken.read_bytes()[:-400])
    return root


@pytest.fixture
def raw(small_raw: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may change."""
    return Path(shutil.copytree(small_raw, tmp_path / "raw"))


@pytest.fixture(scope="session")
def slow_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in 2 classes that take a while each."""
    root = tmp_path_factory.mktemp("slow_raw")
    for label in range(2):
        (root / f"class_{label}").mkdir()
        (root / f"class_{label}" / "00.png").write_bytes(png(label, 1000))
        for number in range(1, 30):
            os.link(
                root / f"class_{label}" / "00.png", root / f"class_{label}" / f"{number:02d}.png"
            )
    return root


@pytest.fixture(scope="session")
def crop() -> PreprocessConfig:
    """Of `raw`: six shards of some 30 kB."""
    return PreprocessConfig(
        crop="adm", resolution=32, num_classes=3, shard_size=10, max_reject_share=0.1
    )


@pytest.fixture(scope="session")
def slow_crop() -> PreprocessConfig:
    """Of `slow_raw`: 20 shards of 3 images."""
    return PreprocessConfig(
        crop="adm", resolution=32, num_classes=2, shard_size=3, max_reject_share=0.0
    )


@pytest.fixture(scope="session")
def teacher() -> TeacherConfig:
    """DINOv3's architecture, minute and random."""
    return TeacherConfig(
        architecture="vit_small_patch16_dinov3",
        weights="random",
        overrides={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        seed=0,
        patch_size=8,
        dim=32,
        batch_size=4,
        cache=FeatureCacheConfig(mirrored=True, dtype="float16"),
    )


class Disk:
    """A file system of its own, of a given size.

    Attributes:
        path: Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Mount a small file system, with options such as "size=100k"."""
    disks: list[Disk] = []

    def mounted(options: str) -> Disk:
        path = tmp_path / f"disk_{len(disks)}"
        path.mkdir()
        disk = Disk(path)
        try:
            done = disk.mount(options)
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("needs the right to mount a file system")
        disks.append(disk)
        return disk

    yield mounted
    for disk in disks:
        disk.unmount()


@pytest.fixture
def run_of(slow_raw, slow_crop, tmp_path):
    """Request a preprocess run below a folder."""

    def request(name: str, stage: str = "images", **machine: Any) -> dict[str, Any]:
        return {
            "stage": stage,
            "data": str(tmp_path / name),
            "raw": str(slow_raw),
            "config": slow_crop.model_dump(mode="json"),
            "machine": {"num_workers": 2, **machine},
        }

    return request
