"""Ranks: what each of them sees, what is left of a lost one, and hosts that meet."""

import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from selfdistill.distributed.launch import (
    _environment,
    _fault,
    _own_handlers,
    launch,
    world_size,
)
from selfdistill.distributed.sharding import own_rows
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.train.job import train_row

_PATIENCE = 120.0  # seconds until a run that does nothing is given up

# Imported by Python at the start of every rank that finds it on PYTHONPATH.
_WATCH = """
    import hashlib, json, os, signal, sys, time
    from pathlib import Path

    if any(argument in sys.orig_argv for argument in ("selfdistill.worker", "-c")):
        from selfdistill.data.loader import Loader
        from selfdistill.draws import Draws
        from selfdistill.methods.dsd import DSD
        from selfdistill.methods.latent_method import Tuned
        from selfdistill.pipelines.train.optim import Updates

        log = Path(os.environ["WATCHED"]) / f"{os.getpid()}.jsonl"

        def note(**values):
            with log.open("a") as file:
                file.write(json.dumps(values) + "\\n")

        def sha(tensor):
            return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]

        stream, draw, of = Loader.stream, Draws._words, Updates.of.__func__

        def watched_stream(self, places):
            for batch in stream(self, places):
                for i, place in enumerate(batch.draws.index.tolist()):
                    image, token = sha(batch.images[i]), sha(batch.features[i])
                    note(place=place, image=image, label=int(batch.labels[i]), token=token)
                yield batch

        def watched_draw(self, name, size):
            words = draw(self, name, size)
            for place, row in zip(self.index.tolist(), words):
                note(draw=name, at=place, words=sha(row))
            return words

        def watched_of(cls, network, config, world):
            updates = of(cls, network, config, world)
            held = sum(part.held.numel() for part in updates.parts)
            note(held=held, all=sum(part.parameter.numel() for part in updates.parts))
            return updates

        def watched_step(after_step):
            def watched(self, nimg, batch_size):
                after_step(self, nimg, batch_size)
                time.sleep(float(os.environ.get("SLOW", 0)))
                if nimg == int(os.environ.get("STOP_AT", 0)):
                    os.kill(os.getpid(), signal.SIGTERM)
                if nimg == int(os.environ.get("BUG_AT", 0)) and os.environ.get("RANK") == "1":
                    raise RuntimeError("a bug")

            return watched

        if os.environ.get("NOTES"):
            Loader.stream, Draws._words = watched_stream, watched_draw
            Updates.of = classmethod(watched_of)
        for method in (DSD, Tuned):
            method.after_step = watched_step(method.after_step)
"""

_TRAIN = """
    import json, sys
    from pathlib import Path
    from selfdistill.data.shards import Shards
    from selfdistill.distributed_config import DistributedConfig
    from selfdistill.methods.config import MethodConfig
    from selfdistill.networks.config import NetworkConfig
    from selfdistill.pipelines.train.config import TrainConfig
    from selfdistill.pipelines.train.job import train_row
    from selfdistill.methods.checkpoint import Checkpoint
    a = json.loads(Path(sys.argv[1]).read_text())
    train_row(
        Shards.open(Path(a["images"])), Shards.open(Path(a["features"])) if a["features"] else None,
        NetworkConfig.model_validate(a["network"]), MethodConfig.model_validate(a["method"]),
        TrainConfig.model_validate(a["train"]), DistributedConfig.model_validate(a["machine"]),
        Path(a["scratch"]), {}, start=Checkpoint.open(Path(a["start"])) if a["start"] else None,
    )
"""


_ONE = {"device": "cpu", "num_ranks": 1, "num_workers": 1}


class Trainings:
    """Starts trainings in processes of their own, whose ranks are watched."""

    def __init__(self, root, images, features, network, method, train, begin=None):
        self.root, self._images, self._features = root, images, features
        self._network, self._method, self._train = network, method, train
        self.begin = begin
        (root / "watch").mkdir()
        (root / "watch" / "sitecustomize.py").write_text(textwrap.dedent(_WATCH))

    def start(self, name, changes=None, environment=None, **machine):
        arguments = self.root / f"{name}.json"
        train = self._train.model_copy(update=changes or {})
        values = {
            "images": str(self._images.path),
            "features": self._features and str(self._features.path),
            "start": self.begin and str(self.begin.path),
            "network": self._network.model_dump(mode="json"),
            "method": self._method.model_dump(mode="json"),
            "train": train.model_dump(mode="json"), "scratch": str(self.root / name),
            "machine": _ONE | machine,
        }  # fmt: skip
        arguments.write_text(json.dumps(values))
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_TRAIN), str(arguments)],
            env=os.environ | self._environment(name, environment),
            stderr=subprocess.PIPE,
            text=True,
        )

    def _environment(self, name, more):
        watched = self.root / f"{name}.watched"
        watched.mkdir(exist_ok=True)
        path = {"PYTHONPATH": str(self.root / "watch"), "WATCHED": str(watched)}
        return {"OMP_NUM_THREADS": "1", **path, **(more or {})}

    def run(self, name, changes=None, environment=None, **machine):
        """Train to the end in this process, but for its ranks."""
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self._environment(name, environment).items():
                patch.setenv(key, value)
            train_row(
                self._images,
                self._features,
                self._network,
                self._method,
                self._train.model_copy(update=changes or {}),
                DistributedConfig.model_validate(_ONE | machine),
                self.root / name,
                {},
                start=self.begin,
            )

    def checkpoint(self, name):
        (path,) = (self.root / name).glob("*.finished")
        return Checkpoint.open(path)

    def losses(self, name):
        """Every term of every line of the curves."""
        lines = [json.loads(line) for line in self.checkpoint(name).curves.open()]
        return [
            {key: value for key, value in line.items() if key == "loss" or "/" in key}
            for line in lines
        ]

    def notes(self, name):
        files = (self.root / f"{name}.watched").iterdir()
        return [[json.loads(line) for line in file.open()] for file in files]


@pytest.fixture
def trainings(tmp_path, images, features, network, method, train_config):
    return Trainings(tmp_path, images, features, network, method, train_config)


def content(checkpoint):
    return {file.name: file.read_bytes() for file in checkpoint.path.iterdir()}


def ranks_below(pid):
    """Return the process ids of the ranks that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(state[1]) == pid and state[0] != "Z" and b"selfdistill.worker" in words:
            found.append(int(entry.name))
    return sorted(found)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    until = time.monotonic() + _PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.01)
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


_references: list[Trainings] = []


@pytest.fixture
def reference(tmp_path_factory, images, features, network, method, train_config):
    """One rank's training of 6 steps of 12 images, watched, made once."""
    if not _references:
        sizes = dict.fromkeys(("batch_size", "micro_batch_size", "log_nimg", "warmup_nimg"), 12)
        train = train_config.model_copy(
            update={**sizes, "total_nimg": 72, "checkpoint_nimg": 72, "num_probe_images": 8}
        )
        root = tmp_path_factory.mktemp("reference")
        _references.append(Trainings(root, images, features, network, method, train))
        run = _references[0].start("one", environment={"NOTES": "1"})
        _, log = run.communicate()
        assert run.returncode == 0, log
    return _references[0]


def seen(notes):
    return Counter(json.dumps(note) for note in notes if "place" in note)


def drawn(notes):  # those of the probe on every rank, hence a set
    return {json.dumps(note) for note in notes if "draw" in note}


@pytest.mark.parametrize(
    ("machine", "micro"),
    [
        pytest.param({"num_ranks": 2, "num_workers": 3}, 3, marks=pytest.mark.slow),
        ({"num_ranks": 3, "num_workers": 3}, 2),
        ({"num_ranks": 2, "strategy": "fsdp", "num_workers": 5}, 12),
        pytest.param({"num_ranks": 3, "strategy": "fsdp"}, 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_strategies_micro_batches_and_workers_change_neither_data_nor_noise_nor_losses(
    reference, machine, micro
):
    """Data and draws to the bit, place by place; losses to 1e-5, as far as sums are ordered."""
    strategy = machine.get("strategy", "ddp")
    name = f"{strategy}_{machine['num_ranks']}"
    (alone,) = reference.notes("one")
    reference.run(name, {"micro_batch_size": micro}, {"NOTES": "1"}, **machine)
    found = reference.notes(name)
    assert len(found) == machine["num_ranks"]
    together = [note for rank in found for note in rank]
    assert len(seen(alone)) == 72
    assert seen(together) == seen(alone)
    assert {json.loads(note)["draw"] for note in drawn(alone)} >= {"flip", "eps", "t", "mask"}
    assert drawn(together) == drawn(alone)
    for line, expected in zip(reference.losses(name), reference.losses("one"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)
    sizes = [note for note in together if "held" in note]
    if strategy == "fsdp":  # up to what does not divide
        assert sum(size["held"] for size in sizes) == sizes[0]["all"]
        assert max(size["held"] for size in sizes) < 1.2 * sizes[0]["all"] / len(sizes)
    else:
        assert all(size["held"] == size["all"] for size in sizes)


@needs_proc
@pytest.mark.parametrize(("strategy", "victim"), [("ddp", 1), ("fsdp", 0)])
def test_a_lost_rank_is_started_again_and_changes_no_byte(trainings, strategy, victim, caplog):
    machine = {"num_ranks": 2, "strategy": strategy}
    trainings.run("whole", **machine)

    def kill():
        wait_for(lambda: any(trainings.root.glob("broken/*/state.pt")))
        os.kill(ranks_below(os.getpid())[victim], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    trainings.run("broken", environment={"SLOW": "0.1"}, **machine)
    killer.join()
    line = f"rank {victim} was ended by SIGKILL, perhaps for want of memory"
    assert [record.message for record in caplog.records if "starting" in record.message] == [
        f"{line}; starting the ranks again (1 of 3)"
    ]
    assert content(trainings.checkpoint("broken")) == content(trainings.checkpoint("whole"))


@needs_proc
def test_ranks_of_a_killed_starter_save_and_leave_and_one_rank_goes_on(trainings):
    trainings.run("whole", num_ranks=2)
    run = trainings.start("broken", environment={"SLOW": "0.1"}, num_ranks=2)
    wait_for(lambda: any(trainings.root.glob("broken/*/state.pt")) or run.poll() is not None)
    ranks = ranks_below(run.pid)
    assert len(ranks) == 2
    run.kill()
    run.communicate()
    wait_for(lambda: not any(map(alive, ranks)))
    (file,) = trainings.root.glob("broken/*/state.pt")
    assert 32 <= torch.load(file, weights_only=True)["nimg"] < 96
    trainings.run("broken", num_ranks=1)
    for line, expected in zip(trainings.losses("broken"), trainings.losses("whole"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_signal_ends_a_run_with_its_number_and_leaves_no_files_of_the_ranks(trainings):
    folder = trainings.root / "temporary"
    folder.mkdir()
    run = trainings.start("stopped", None, {"SLOW": "0.1", "TMPDIR": str(folder)}, num_ranks=2)
    wait_for(lambda: any(trainings.root.glob("stopped/*/state.pt")) or run.poll() is not None)
    run.send_signal(signal.SIGTERM)
    _, log = run.communicate()
    assert run.returncode == 128 + signal.SIGTERM, log
    assert list(folder.iterdir()) == []


def test_a_saved_state_goes_on_under_any_strategy_and_number_of_ranks(trainings):
    """Three ranks of rows, then all of it on one; and the other way round."""
    changes = {"batch_size": 12, "micro_batch_size": 12, "log_nimg": 12, "checkpoint_nimg": 96}
    changes |= {"warmup_nimg": 12}
    rows, whole = {"num_ranks": 3, "strategy": "fsdp"}, {"num_ranks": 1}
    trainings.run("one", changes, **whole)
    for name, (before, after) in {"gathered": (rows, whole), "cut": (whole, rows)}.items():
        stopped = trainings.start(name, changes, {"STOP_AT": "48"}, max_restarts=0, **before)
        _, log = stopped.communicate()
        assert "state saved at 48 images" in log
        (file,) = trainings.root.glob(f"{name}/*/state.pt")
        assert torch.load(file, weights_only=True)["nimg"] == 48
        trainings.run(name, changes, **after)
        for line, expected in zip(trainings.losses(name), trainings.losses("one"), strict=True):
            assert line == pytest.approx(expected, rel=1e-5, abs=1e-5), name
        a, b = (
            load_file(trainings.checkpoint(each).path / "weights.safetensors")
            for each in (name, "one")
        )
        assert list(a) == list(b)
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], atol=2e-5, rtol=1e-3, msg=key)


TRANSFORMER = {
    "latent_size": 16, "latent_channels": 3, "patch_size": 4, "width": 16, "depth": 3,
    "num_heads": 2, "num_classes": 5,
}  # fmt: skip
PROJECTORS = {"block": 1, "width": 16, "dims": [6]}  # which no pass asks: their gradient is none
TUNED = {
    "dit": {**TRANSFORMER, "name": "dit", "learn_sigma": True},
    "sit": {**TRANSFORMER, "name": "sit", "learn_sigma": False, "noise_at": 1}
    | {"projectors": PROJECTORS},
    "head": None,  # of DSD's ViT
}


@pytest.fixture
def tuning(tmp_path, images, network, method, train_config):
    """Make the trainings of iSSD on a network by name, from a checkpoint of it."""

    def make(kind):
        ordinary = {"name": "diffusion", "class_dropout": 0.1, "ema_decay": None}
        begun = method if kind == "head" else MethodConfig.model_validate(ordinary)
        config = network if kind == "head" else NetworkConfig.model_validate(TUNED[kind])
        torch.manual_seed(0)
        built = build_method(config, begun)
        with torch.no_grad():  # gates start at zero, and nothing would be seen of the blocks
            for parameter in built.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        begin = Checkpoint.write(
            tmp_path / "start", built, network_config=config, method_config=begun,
            about={"nimg": 0},
        )  # fmt: skip
        target = {"form": "implicit", "mix_prev": 0.25, "site": "branch"}
        issd = {"name": "ssd", "target": target, "grid": {"num_steps": 4}, "class_dropout": 0.1}
        chosen = MethodConfig.model_validate(issd)
        return Trainings(tmp_path, images, None, config, chosen, train_config, begin)

    return make


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [("sit", "ddp"), pytest.param("dit", "fsdp", marks=pytest.mark.slow), ("head", "fsdp")],
)
def test_self_distillation_goes_on_from_two_ranks_on_one(tuning, kind, strategy):
    """The frozen copy is cut, gathered and saved too, and stays what the training started from."""
    trainings = tuning(kind)
    trainings.run("one")
    stopped = trainings.start(
        "two", None, {"STOP_AT": "48"}, max_restarts=0, num_ranks=2, strategy=strategy
    )
    _, log = stopped.communicate()
    assert "state saved at 48 images" in log
    (file,) = trainings.root.glob("two/*/state.pt")
    saved = torch.load(file, weights_only=True)["method"]
    begun = trainings.begin.load(torch.device("cpu")).released().state_dict()
    frozen = {key: value for key, value in saved.items() if key.startswith("frozen.")}
    assert frozen
    for key, value in frozen.items():
        assert torch.equal(value, begun[key.removeprefix("frozen.")]), key
    trainings.run("two")
    for line, expected in zip(trainings.losses("two"), trainings.losses("one"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)
    two, one = (trainings.checkpoint(name).load(torch.device("cpu")) for name in ("two", "one"))
    for key, value in two.network.state_dict().items():
        torch.testing.assert_close(value, one.network.state_dict()[key], atol=2e-5, rtol=1e-3)


def test_an_error_in_the_code_of_a_rank_is_not_tried_again(trainings, caplog):
    """Nor does torch elastic leave its signal handlers to this process."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(RuntimeError, match=r"^rank 1 failed: RuntimeError: a bug$"):
        trainings.run("bug", None, {"BUG_AT": "16"}, num_ranks=2)
    assert not [record for record in caplog.records if "starting" in record.message]
    assert [signal.getsignal(number) for number in numbers] == before


def test_ranks_that_are_lost_too_often_end_the_run(trainings):
    with pytest.raises(ChildProcessError, match="was told to stop: run again, what is finished"):
        trainings.run("lost", None, {"STOP_AT": "8"}, num_ranks=2, max_restarts=0)


class Lender:
    """Another host, on this machine: it lends a rank to whatever comes."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            self.endpoint = f"localhost:{probe.getsockname()[1]}"
        self._process = None

    def start(self):
        join = f"""
            trap exit INT TERM
            while true; do
                {sys.executable} -m torch.distributed.run --nnodes=1:2 --nproc-per-node=1 \\
                    --rdzv-backend=c10d --rdzv-endpoint={self.endpoint} --rdzv-id=selfdistill \\
                    --rdzv-conf=is_host=0,read_timeout=5 -m selfdistill.worker join
                sleep 0.2
            done
        """
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"
        }  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", join], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )

    def ranks(self):
        starters = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [rank for starter in starters.split() for rank in ranks_below(int(starter))]

    def end(self, number=signal.SIGTERM):
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait()
            self._process = None


@pytest.fixture
def lender():
    lender = Lender()
    yield lender
    lender.end()


def test_two_hosts_train_to_the_bytes_of_two_ranks_on_one(trainings, lender):
    trainings.run("one_host", num_ranks=2)
    lender.start()
    trainings.run("two_hosts", num_hosts=2, rendezvous=lender.endpoint)
    assert content(trainings.checkpoint("two_hosts")) == content(trainings.checkpoint("one_host"))


@needs_proc
@pytest.mark.slow
def test_a_lost_host_is_done_without_until_it_is_back(trainings, lender, monkeypatch, caplog):
    monkeypatch.setitem(launch.__globals__, "_LAST_CALL", 2)
    trainings.run("whole", num_ranks=1)
    lender.start()
    seen = []

    def nimg():
        states = list(trainings.root.glob("broken/*/state.pt"))
        return torch.load(states[0], weights_only=True)["nimg"] if states else 0

    def lose_and_find():
        wait_for(nimg)
        seen.append("lost")
        lender.end(signal.SIGKILL)
        wait_for(lambda: any("starting the ranks again" in line for line in caplog.messages))
        before = nimg()
        wait_for(lambda: nimg() > before)
        seen.append("alone")
        lender.start()
        wait_for(lender.ranks)
        seen.append("back")

    thread = threading.Thread(target=lose_and_find)
    thread.start()
    trainings.run(
        "broken",
        {"checkpoint_nimg": 16},
        {"SLOW": "2"},
        num_hosts=2,
        rendezvous=lender.endpoint,
    )
    thread.join()
    assert seen == ["lost", "alone", "back"]
    for line, expected in zip(trainings.losses("broken"), trainings.losses("whole"), strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)


def failure(exitcode, message="", timestamp=0):
    name = signal.Signals(-exitcode).name if exitcode < 0 else ""
    return SimpleNamespace(
        exitcode=exitcode, message=message, timestamp=timestamp, signal_name=lambda: name
    )


@pytest.mark.parametrize(
    ("failures", "kind", "text"),
    [
        # What a rank raised on purpose comes before what it does to the others.
        ({0: failure(1, "LostRankError: x"), 1: failure(1, "ValueError: no")}, "ValueError", "no"),
        ({0: failure(-6), 1: failure(1, "OSError: full", 1)}, "OSError", "full"),
        # A signal comes before the connections that it breaks; those that are left get SIGTERM.
        ({0: failure(-15), 1: failure(-9, "", 1)}, "_LostError", "rank 1 was ended by SIGKILL"),
        ({0: failure(1, "LostRankError: gone"), 1: failure(-9)}, "_LostError", "rank 1 was ended"),
        ({0: failure(1, "LostRankError: gone")}, "_LostError", "rank 0: gone"),
        ({0: failure(143), 1: failure(143)}, "_LostError", "rank 0 was told to stop"),
        # A broken GPU is raised by torch, and makes the others abort.
        (
            {0: failure(-6), 1: failure(1, "AcceleratorError: CUDA error: unspecified")},
            "_LostError",
            "rank 1: CUDA error",
        ),
        (
            {0: failure(1, "RuntimeError: nccl"), 1: failure(1, "AcceleratorError: CUDA error")},
            "_LostError",
            "rank 1: CUDA error",
        ),
        # An error of the code is not tried again, unless a lost rank explains it.
        ({0: failure(1, "RuntimeError: bug")}, "RuntimeError", "rank 0 failed: RuntimeError: bug"),
        ({0: failure(1, "RuntimeError: nccl"), 1: failure(-9)}, "_LostError", "SIGKILL"),
        # What torch elastic does to the others, and what they make of it, explains nothing.
        ({0: failure(1, "RuntimeError: a"), 1: failure(-15)}, "RuntimeError", "rank 0 failed"),
        ({0: failure(1, "LostRankError: x"), 1: failure(1, "E: b", 1)}, "RuntimeError", "1 failed"),
        ({0: failure(1, "RuntimeError: a"), 1: failure(143)}, "RuntimeError", "rank 0 failed"),
        ({0: failure(-9, "", 31), 1: failure(1, "E: a", 1)}, "RuntimeError", "rank 1 failed: E"),
        ({0: failure(-6), 1: failure(1, "E: a", 1)}, "RuntimeError", "rank 1 failed: E: a"),
        ({0: failure(-6), 1: failure(-15)}, "_LostError", "rank 0 was ended by SIGABRT"),
    ],
)  # fmt: skip
def test_only_the_loss_of_a_rank_is_worth_another_start(failures, kind, text):
    found = _fault(failures)
    assert type(found).__name__ == kind
    assert text in str(found)


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_that_comes_once_ranks_have_ended_ends_the_run_with_its_number_too(number, end):
    """Torch elastic's handlers are there until its last word, and raise wherever one is."""
    elastic = importlib.import_module("torch.distributed.elastic.multiprocessing.api")
    before = signal.getsignal(number)

    def launch_and_be_told():
        with _own_handlers():
            signal.signal(number, elastic._terminate_process_handler)
            signal.raise_signal(number)

    with pytest.raises(end) as raised:
        launch_and_be_told()
    assert end is KeyboardInterrupt or raised.value.code == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("seconds_of_work", [0, 3601])
def test_losses_count_until_ranks_have_worked_for_an_hour(tmp_path, monkeypatch, seconds_of_work):
    lost, clock = iter(["rank 1 has gone"] * 4 + [None]), itertools.count(step=seconds_of_work)
    monkeypatch.setitem(launch.__globals__, "_start", lambda *_, **__: next(lost))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    machine = DistributedConfig(device="cpu", num_ranks=2, max_restarts=2)
    if seconds_of_work:
        launch(print, tmp_path / "spec.json", machine)
    else:
        with pytest.raises(ChildProcessError, match="rank 1 has gone"):
            launch(print, tmp_path / "spec.json", machine)
    assert len(list(lost)) == (0 if seconds_of_work else 2)


def test_ranks_that_are_told_to_stop_have_two_minutes_to_save(monkeypatch):
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    torch_elastic = importlib.import_module("torch.distributed.launcher.api")
    with _environment(num_ranks=1):
        settings = torch_elastic.LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    assert settings.shutdown_timeout == 120


def test_a_host_that_is_not_the_first_is_told_how_to_lend_its_ranks(tmp_path):
    machine = DistributedConfig(device="cpu", num_hosts=2, host=1, rendezvous="node0:29400")
    with pytest.raises(ValueError, match="only host 0 runs Kedro"):
        launch(print, tmp_path / "spec.json", machine)


@pytest.mark.parametrize("rendezvous", ["node0", "node0:", ":29400", "no de:29400", "tcp://a:1"])
def test_a_rendezvous_without_host_and_port_is_refused(rendezvous):
    with pytest.raises(ValueError, match="rendezvous"):
        DistributedConfig(rendezvous=rendezvous)


def test_hosts_that_only_share_the_making_of_shards_have_ranks_of_their_own():
    alone = DistributedConfig(device="cpu", num_ranks=2, num_hosts=3)
    assert world_size(alone) == 2
    together = DistributedConfig(device="cpu", num_ranks=2, num_hosts=3, rendezvous="node0:29400")
    assert world_size(together) == 6


@given(num_rows=st.integers(1, 40), size=st.integers(1, 9))
def test_the_rows_of_all_ranks_are_the_tensor(num_rows, size):
    whole = torch.arange(2 * num_rows).view(num_rows, 2)
    parts = [own_rows(whole, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat(parts), whole)
    assert all(len(a) >= len(b) for a, b in itertools.pairwise(parts))
