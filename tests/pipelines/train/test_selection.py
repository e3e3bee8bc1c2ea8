"""The best state of a training: what is kept, no bit that it costs the training, resuming."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.distributed import World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.config import MethodConfig
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.metrics.statistics import Statistics
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.evaluate.collect import Collector
from selfdistill.pipelines.evaluate.measure import evaluate
from selfdistill.pipelines.evaluate.reference import describe
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.pipelines.sample.generate import generate_samples
from selfdistill.pipelines.train import job
from selfdistill.pipelines.train.best import Best
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.job import train_row
from selfdistill.pipelines.train.loop import State
from selfdistill.pipelines.train.nodes import train as train_node
from selfdistill.pipelines.train.progress_pictures import draw_progress
from selfdistill.pipelines.train.selecting import prepare
from selfdistill.pipelines.train.selection import SampleJudge

SID = MethodConfig.model_validate(
    {
        "name": "sid", "alpha": 1.0, "start_level": 2.5, "largest_share": 0.8, "log_mean": -1.2,
        "log_deviation": 1.2, "generator_weight": 1, "fake_weight": 1, "half_life_nimg": 10,
        "ramp_up": 0.5, "normalize_weights": False, "adversary": None,
    }
)  # fmt: skip
NETWORK = NetworkConfig.model_validate(
    {
        "name": "ddpmpp", "latent_size": 16, "latent_channels": 3, "width": 16, "multipliers": [1],
        "num_blocks": 1, "attention_sides": [], "num_classes": 5, "conditional": True,
        "dropout": 0.2, "augment_dim": 0,
    }
)  # fmt: skip
TRAIN = TrainConfig.model_validate(
    {
        "seed": 0, "total_nimg": 48, "batch_size": 8, "micro_batch_size": 8, "flip": False,
        "warmup_nimg": 0, "schedule": "constant", "clip_norm": None, "precision": "fp32",
        "compile": False, "recompute_activations": False, "log_nimg": 8, "num_probe_images": 0,
        "checkpoint_nimg": 32,
        "optimizer": {
            "name": "adamw", "lr": 1.0e-3, "weight_decay": 0, "betas": (0.0, 0.99), "eps": 1.0e-8,
        },
    }
)  # fmt: skip
SELECTION = {
    "metric": "fd_tiny", "sampling": "plain", "nimg": 16, "num_images": 21, "batch_size": 4,
    "seed": 9,
}  # fmt: skip
SAMPLING = {
    "solver": "edm", "num_steps": 1, "levels": [2.5], "guidance": 1.0,
    "guidance_interval": [0.0, 1.0], "seed": 0, "num_images": 21, "repeats": 1, "batch_size": 8,
    "shard_size": 16,
}  # fmt: skip
FILES = ("weights.safetensors", "checkpoint.json", "curves.jsonl")
PICTURES = "pictures"


def content(checkpoint):
    pictures = sorted((checkpoint.path / PICTURES).glob("*.png"))
    names = [*FILES, *(f"{PICTURES}/{file.name}" for file in pictures)]
    return {name: (checkpoint.path / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    config = EvaluationConfig(metrics=("fd_tiny",))
    scratch = tmp_path_factory.mktemp("reference")
    return describe(images, [], Collector(config, {}, DistributedConfig(device="cpu"), scratch))


@pytest.fixture(scope="module")
def chosen(images, reference):
    def chosen(**changes):
        values = {**SELECTION, **changes}
        return prepare(images, values, SAMPLING, reference, "exact", None, None, {})

    return chosen


@pytest.fixture(scope="module")
def run(images, one_rank, chosen):
    def run(scratch, distributed=one_rank, select=True, selection=None, **changes):
        config = TRAIN.model_copy(update=changes)
        found = chosen(**(selection or {})) if select else None
        return train_row(
            images, None, NETWORK, SID, config, distributed, scratch, {}, selection=found
        )

    return run


@pytest.fixture(scope="module")
def ends():
    """By scratch folder, the method's state when its training ended, and its layers' modes."""
    found, original = {}, job.fit

    def fit(method, loader, config, world, directory, *others):
        nimg = original(method, loader, config, world, directory, *others)
        state = {name: value.clone() for name, value in method.state_dict().items()}
        found[directory.parent] = state, [module.training for module in method.modules()]
        return nimg

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "fit", fit)
        yield found


@pytest.fixture(scope="module")
def whole(run, ends, tmp_path_factory):
    """A training that nothing has stopped."""
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def fixed_values(monkeypatch):
    """Put numbers in the place of what is measured, one an evaluation, by images seen."""

    def fix(values):
        original = Best.consider

        def consider(self, nimg, joint, method, stopping):
            self._judge.measure = lambda *_: values[nimg]
            return original(self, nimg, joint, method, stopping)

        monkeypatch.setattr(Best, "consider", consider)

    return fix


def test_the_checkpoint_has_the_weights_of_the_smallest_number(run, tmp_path, fixed_values):
    """Those of a training that ends there, to the bit; the last of equals changes nothing."""
    fixed_values({16: 3.0, 32: 1.0, 40: 2.0, 48: 1.0})
    best, there = run(tmp_path / "best"), run(tmp_path / "there", select=False, total_nimg=32)
    assert content(best)[FILES[0]] == content(there)[FILES[0]]
    assert best.about["nimg"] == 48
    trail = [[16, 3.0], [32, 1.0], [48, 1.0]]
    assert best.about["selected"] == {
        "metric": "fd_tiny", "value": 1.0, "nimg": 32, "trail": trail
    }  # fmt: skip
    lines = [json.loads(line) for line in best.curves.read_text().splitlines()]
    found = [[one["nimg"], one["selection"]["fd_tiny"]] for one in lines if "selection" in one]
    assert found == trail
    assert sorted(file.name for file in best.path.iterdir()) == sorted(FILES)


def test_selecting_changes_no_bit_of_the_training(run, whole, ends, tmp_path):
    """Networks with dropout, whose layers are left in the modes that they were in."""
    plain = run(tmp_path, select=False)
    (state, modes), (other, others) = (ends[one.path.parent] for one in (whole, plain))
    assert state.keys() == other.keys()
    assert all(state[name].equal(other[name]) for name in state)
    assert modes == others
    assert len(set(modes)) == 2
    before, after = (
        [json.loads(line) for line in one.curves.read_text().splitlines()] for one in (plain, whole)
    )
    assert sum("selection" in line for line in after) == 3
    assert before == [{k: v for k, v in line.items() if k != "selection"} for line in after]


def test_the_number_is_what_the_stages_measure_of_the_same_noise(
    whole, tmp_path, images, reference, one_rank
):
    sampling = SampleConfig.model_validate({**SAMPLING, "seed": SELECTION["seed"]})
    samples = generate_samples(whole, images, sampling, one_rank, tmp_path / "samples")
    config = EvaluationConfig(metrics=("fd_tiny",))
    collector = Collector(config, {}, one_rank, tmp_path / "evaluate")
    expected = evaluate(samples, images, reference, 1, collector)["metrics"]["fd_tiny"]
    assert whole.about["selected"]["value"] == pytest.approx(expected, rel=1e-9)


def test_each_evaluation_leaves_a_picture_of_the_same_noise(whole, images):
    trail = whole.about["selected"]["trail"]
    names = [f"{nimg:012d}.png" for nimg, _ in trail]
    assert sorted(file.name for file in (whole.path / "pictures").iterdir()) == names
    strips = [np.asarray(Image.open(whole.path / "pictures" / name)) for name in names]
    side = images.shape[0]
    assert {strip.shape for strip in strips} == {(side, 4 * side, 3)}  # of a batch of 4
    assert np.abs(strips[0].astype(int) - strips[-1]).max() > 0
    picture = draw_progress(whole.path)
    assert picture.height >= len(trail) * 32


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["best", "state"])
def test_a_killed_training_goes_on_to_the_same_bytes(run, whole, tmp_path, monkeypatch, place):
    """Killed between weights and state, and after a state that knows newer weights."""

    def kill(cls, name, nimg, after):
        original = getattr(cls, name)

        def dies(self, *arguments):
            if after:
                original(self, *arguments)
            if self.nimg == nimg:
                raise Killed
            return None if after else original(self, *arguments)

        monkeypatch.setattr(cls, name, dies)

    kill(State, "save", 32, place == "state")
    with pytest.raises(Killed):
        run(tmp_path / "broken", checkpoint_nimg=16)
    monkeypatch.undo()
    (directory,) = [one for one in (tmp_path / "broken").iterdir() if one.is_dir()]
    state = torch.load(directory / "state.pt", weights_only=True)
    assert state["nimg"] == (16 if place == "best" else 32)
    assert [nimg for nimg, _ in state["trail"]] == [16, 32][: state["nimg"] // 16]
    best = min(state["trail"], key=lambda one: one[1])[0]
    assert (directory / f"best-{best}.safetensors").is_file()
    if place == "state":
        assert len(list(directory.glob("best-*"))) == 1
    assert content(run(tmp_path / "broken", checkpoint_nimg=16)) == content(whole)


def test_a_signal_cuts_a_selection_short_and_it_is_made_up_for(run, whole, tmp_path, monkeypatch):
    original = SampleJudge._samples

    def ask(self, joint, method, numbers):
        if numbers[0] >= 8 and len(list(self._directory.glob("best-*"))):  # the second selection
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, joint, method, numbers)

    monkeypatch.setattr(SampleJudge, "_samples", ask)
    with pytest.raises(SystemExit):
        run(tmp_path / "broken")
    monkeypatch.undo()
    (directory,) = [one for one in (tmp_path / "broken").iterdir() if one.is_dir()]
    state = torch.load(directory / "state.pt", weights_only=True)
    assert state["nimg"] == 32
    assert [nimg for nimg, _ in state["trail"]] == [16]
    assert content(run(tmp_path / "broken")) == content(whole)


def test_weights_of_the_best_that_are_gone_are_named(tmp_path):
    class Never:
        metric, better, nimg = "fd_tiny", "lower", 16

    best = Best(Never(), tmp_path, 48, World(0, 1, torch.device("cpu")))
    with pytest.raises(FileNotFoundError, match=r"best-32.safetensors.*train anew"):
        best.take_up([(16, 2.0), (32, 1.0)])


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_ranks_find_the_numbers_of_one_and_choose_the_same(run, tmp_path, strategy):
    """Six batches in six pieces, the last of one image: the ranks take turns."""
    one = run(tmp_path / "one", total_nimg=32)
    ranks = DistributedConfig(device="cpu", num_ranks=2, strategy=strategy)
    two = run(tmp_path / "two", ranks, total_nimg=32)
    ours, theirs = (checkpoint.about["selected"] for checkpoint in (one, two))
    assert ours["nimg"] == theirs["nimg"]
    assert np.array(ours["trail"]) == pytest.approx(np.array(theirs["trail"]), rel=1e-3)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_equal_weights_give_any_number_of_ranks_the_same_bits(
    chosen, images, reference, tmp_path, size
):
    """Ranks one after another, each in a world of its own; pieces of all are merged in order."""
    from selfdistill.methods.registry import build_method

    torch.manual_seed(0)
    method = build_method(NETWORK, SID).eval()
    calls = []

    class Alone(World):
        def any(self, flag):
            calls.append(self.rank)
            return flag

        def barrier(self):
            pass

        def sum(self, value):
            return value

    def joint(compute, x):
        return compute(x)

    found = chosen()
    spec = {**found.settings, **found.machine, "reference": str(tmp_path / "reference.npz")}
    np.savez(tmp_path / "reference.npz", **found.reference)
    values = []
    for ranks in (1, size):
        for rank in reversed(range(ranks)):  # rank 0, which merges, is the last
            world = Alone(rank, ranks, torch.device("cpu"))
            judge = SampleJudge(spec, images.class_names, world, tmp_path)
            value = judge.measure(8, joint, method, lambda: False)
        values.append(value)
        assert len({calls.count(rank) for rank in range(ranks)}) == 1  # equally often
        calls.clear()
        assert not list(tmp_path.glob("selection-*"))
    assert values[0] == values[1] > 0


def test_selection_is_part_of_the_jobs_name_and_its_absence_is_not(
    run, tmp_path, monkeypatch, chosen
):
    names = []

    def note(run, directory, *_):
        names.append((directory.name, json.loads(json.dumps(_[0]["about"]))))
        raise Killed

    monkeypatch.setattr("selfdistill.pipelines.train.job.run_job", note)
    for number, changes in enumerate(
        [{"select": False}, {}, {"selection": {"seed": 8}}, {"selection": {"batch_size": 8}}]
    ):
        with pytest.raises(Killed):
            run(tmp_path / str(number), **changes)
    (plain, about), (selecting, told), (other, _), (same, _) = names
    assert len({plain, selecting, other}) == 3
    assert same == selecting  # memory changes, not what is trained
    assert "selection" not in about
    assert list(about["inputs"]) == ["images"]
    assert told["selection"]["solver"]["levels"] == [2.5]
    assert told["inputs"]["selection_reference"] == chosen().inputs["selection_reference"]
    assert told["code"]["source"] != about["code"]["source"]


def test_statistics_of_other_images_or_extractors_are_refused(
    images, reference, shard_set, tmp_path
):
    def ask(of=images, reference=reference, **changes):
        values = {**SELECTION, **changes}
        return prepare(of, values, SAMPLING, reference, "exact", None, None, {})

    rows = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="made of other images"):
        ask(shard_set(tmp_path / "others", rows))
    about = json.loads(str(reference["about"]))
    about["extractors"]["tiny"]["weights_sha256"] = "0" * 64
    with pytest.raises(ValueError, match="other weights or another profile of tiny"):
        ask(reference={**reference, "about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match="does not know filters of tiny, which fd_tiny needs"):
        ask(reference={"about": reference["about"]})
    latents = shard_set(tmp_path / "latents", rows, images=images.fingerprint)
    assert Statistics.from_arrays(ask(latents).reference).moments


def test_the_node_keeps_an_extractors_weights_from_the_method(
    images, reference, one_rank, tmp_path, monkeypatch
):
    told = {}

    def train_row(*arguments, **named):
        told.update(frozen=arguments[7], **named)

    monkeypatch.setattr("selfdistill.pipelines.train.job.train_row", train_row)
    train_node(
        images, NETWORK, SID, TRAIN, one_rank, tmp_path, selection=SELECTION,
        sampling=SampleConfig.model_validate(SAMPLING), reference=reference,
        inception_2015=tmp_path / "inception",
    )  # fmt: skip
    assert told["frozen"] == {}
    assert told["selection"].settings["metric"] == "fd_tiny"
