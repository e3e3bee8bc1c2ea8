"""Training as a job: bitwise resumption, equal ranks, what starts anew."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file

from selfdistill import files
from selfdistill.data.loader import Batch
from selfdistill.distributed import World, run_job
from selfdistill.distributed_config import DistributedConfig
from selfdistill.draws import Draws
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.pipelines.features.encode import features_job
from selfdistill.pipelines.train.config import NEUTRAL
from selfdistill.pipelines.train.curves import Means
from selfdistill.pipelines.train.job import train_row
from selfdistill.pipelines.train.loop import State

FILES = ("weights.safetensors", "checkpoint.json", "curves.jsonl")


def content(checkpoint):
    return {name: (checkpoint.path / name).read_bytes() for name in FILES}


def folders(scratch):
    return [path for path in scratch.iterdir() if path.is_dir()]


@pytest.fixture
def run(images, features, network, method, train_config, one_rank):
    def run(scratch, distributed=one_rank, **changes):
        config = train_config.model_copy(update=changes)
        return train_row(images, features, network, method, config, distributed, scratch, {})

    return run


def test_the_same_row_gives_the_same_bytes_and_another_seed_does_not(run, tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    assert content(one) == content(two)
    other = run(tmp_path / "other", seed=1)
    assert content(one)["weights.safetensors"] != content(other)["weights.safetensors"]


@pytest.mark.parametrize("stop_at", [24, 32, 64])
def test_resume_is_bitwise_identical(run, tmp_path, monkeypatch, stop_at):
    whole = run(tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(self, nimg, batch_size):
        if nimg == stop_at + 8:
            raise Killed
        return original(self, nimg, batch_size)

    from selfdistill.methods.dsd import DSD

    original = DSD.after_step
    monkeypatch.setattr(DSD, "after_step", kill)
    with pytest.raises(Killed):
        run(tmp_path / "broken")
    monkeypatch.setattr(DSD, "after_step", original)
    (directory,) = folders(tmp_path / "broken")
    assert (directory / "state.pt").is_file() == (stop_at >= 32)
    assert content(run(tmp_path / "broken")) == content(whole)


def test_sigterm_saves_the_state_at_the_very_step(run, tmp_path, monkeypatch):
    from selfdistill.methods.dsd import DSD

    whole, original = run(tmp_path / "whole"), DSD.after_step

    def ask(self, nimg, batch_size):
        original(self, nimg, batch_size)
        if nimg == 40:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(DSD, "after_step", ask)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "broken")
    assert stopped.value.code == 143
    monkeypatch.setattr(DSD, "after_step", original)
    (directory,) = folders(tmp_path / "broken")
    assert torch.load(directory / "state.pt", weights_only=True)["nimg"] == 40
    assert content(run(tmp_path / "broken")) == content(whole)


def test_a_killed_process_goes_on_to_the_same_bytes(
    images, features, network, method, train_config, tmp_path
):
    """SIGKILL, which nobody can catch, at some moment of a training in a process of its own."""
    long = {"total_nimg": 640, "checkpoint_nimg": 16}
    spec = tmp_path / "arguments.json"
    spec.write_text(
        json.dumps(
            {
                "images": str(images.path),
                "features": str(features.path),
                "network": network.model_dump(mode="json"),
                "method": method.model_dump(mode="json"),
                "train": train_config.model_copy(update=long).model_dump(mode="json"),
            }
        )
    )
    program = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from selfdistill.data.shards import Shards
        from selfdistill.distributed_config import DistributedConfig
        from selfdistill.methods.config import MethodConfig
        from selfdistill.networks.config import NetworkConfig
        from selfdistill.pipelines.train.config import TrainConfig
        from selfdistill.pipelines.train.job import train_row
        a = json.loads(Path(sys.argv[1]).read_text())
        train_row(
            Shards.open(Path(a["images"])), Shards.open(Path(a["features"])),
            NetworkConfig.model_validate(a["network"]), MethodConfig.model_validate(a["method"]),
            TrainConfig.model_validate(a["train"]),
            DistributedConfig(device="cpu", num_ranks=1), Path(sys.argv[2]), {},
        )
        """
    )

    def command(scratch):
        return [sys.executable, "-c", program, str(spec), str(tmp_path / scratch)]

    process = subprocess.Popen(command("broken"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "broken").glob("*/state.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (directory,) = folders(tmp_path / "broken")
    saved = torch.load(directory / "state.pt", weights_only=True)["nimg"]
    assert 0 < saved < long["total_nimg"]
    checkpoints = []
    for scratch in ("broken", "whole"):
        subprocess.run(command(scratch), check=True)
        checkpoints += [Checkpoint.open(path) for path in folders(tmp_path / scratch)]
    assert content(checkpoints[0]) == content(checkpoints[1])


def test_two_ranks_train_to_the_weights_of_one(run, tmp_path):
    """Up to the order of float sums: each rank adds half of the batch, gloo adds the halves."""
    one = run(tmp_path / "one")
    two = run(tmp_path / "two", DistributedConfig(device="cpu", num_ranks=2))
    a, b = (load_file(c.path / "weights.safetensors") for c in (one, two))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-5, rtol=1e-3, msg=name)
    curves = [
        [json.loads(line) for line in (c.path / "curves.jsonl").read_text().splitlines()]
        for c in (one, two)
    ]
    for line, other in zip(*curves, strict=True):
        assert line["nimg"] == other["nimg"]
        ranks, others = line.pop("diagnostics"), other.pop("diagnostics")
        for name, value in [*line.items(), *ranks.items()]:
            expected = (other | others)[name]
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-3), name


def test_micro_batches_change_nothing_but_the_order_of_sums(run, tmp_path):
    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", micro_batch_size=2)
    a, b = (load_file(c.path / "weights.safetensors") for c in (whole, parts))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-5, rtol=1e-3, msg=name)


def test_a_failed_rank_gives_its_own_message(run, tmp_path):
    with pytest.raises(ValueError, match="does not divide into 3 ranks"):
        run(tmp_path, DistributedConfig(device="cpu", num_ranks=3))


def test_a_batch_that_does_not_divide_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="batch_size 8"):
        run(tmp_path, micro_batch_size=3)


def test_a_changed_parameter_starts_anew_and_says_so(run, tmp_path, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("selfdistill.pipelines.train.job.run_job", lambda *_: sys.exit(143))
        with pytest.raises(SystemExit):
            run(tmp_path)
    with caplog.at_level("INFO"):
        run(tmp_path, seed=2)
    assert "Starting anew" in caplog.text
    assert len(folders(tmp_path)) == 2  # the unfinished one stays, beside the finished one


def test_a_finished_training_leaves_nothing_but_the_checkpoint(run, tmp_path):
    checkpoint = run(tmp_path)
    speed = checkpoint.path.with_suffix(".speed.jsonl")
    left = {path for path in tmp_path.iterdir() if path.name != ".lock"}
    assert left == {checkpoint.path, speed}
    assert sorted(file.name for file in checkpoint.path.iterdir()) == sorted(FILES)
    for file in ("checkpoint.json", "curves.jsonl"):
        assert str(tmp_path) not in (checkpoint.path / file).read_text()


def test_two_runs_never_share_a_job(run, tmp_path):
    with files.job(tmp_path, "other"), pytest.raises(ValueError, match="another run is at work"):
        run(tmp_path)


def test_a_finished_training_that_was_not_fetched_is_not_repeated(run, tmp_path, monkeypatch):
    first = content(run(tmp_path))
    monkeypatch.setattr("selfdistill.pipelines.train.job.run_job", None)
    assert content(run(tmp_path)) == first


def test_ranks_that_are_started_after_the_end_leave_it_alone(run, tmp_path, monkeypatch):
    """As when one of them is lost once the checkpoint has its name."""

    def twice(*arguments):
        for _ in range(2):
            run_job(*arguments)
            (finished,) = tmp_path.glob("*.finished")
            made.append(content(Checkpoint.open(finished)))

    made = []
    monkeypatch.setattr("selfdistill.pipelines.train.job.run_job", twice)
    run(tmp_path)
    assert made[0] == made[1]


@pytest.mark.parametrize("size", [3, 6, 24])
def test_means_that_ranks_take_up_again_add_up_to_the_same_bits(tmp_path, size):
    saved = {
        "x": torch.rand(99, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    }
    net = torch.nn.Linear(1, 1)
    State(net, {}, means=Means(saved)).save(tmp_path, World(0, 1, torch.device("cpu")))
    totals = torch.zeros(99, 3, dtype=torch.float64)
    for rank in range(size):
        state = State(net, {})
        state.load(tmp_path, World(rank, size, torch.device("cpu")))
        totals += state.means.totals["x"]
    assert torch.equal(totals, saved["x"])


def poisoned_in(steps):
    """Return DSD's loss with a term that is NaN for one image in the given steps of 8 images."""
    from selfdistill.methods.dsd import DSD

    original = DSD.loss

    def poisoned(self, batch):
        losses = original(self, batch)
        index = batch.draws.index
        bad = torch.tensor([int(i) // 8 in steps and int(i) % 8 == 3 for i in index])
        poison = torch.where(bad, torch.nan, 1.0)
        return {**losses, "reconstruction": losses["reconstruction"] * poison}

    return poisoned


def test_a_loss_that_stays_broken_stops_the_training_and_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr("selfdistill.methods.dsd.DSD.loss", poisoned_in(range(12)))
    with pytest.raises(
        FloatingPointError,
        match="network/reconstruction is not finite for 2 of 16 images: 2 of 2 steps were skipped",
    ):
        run(tmp_path)


def test_a_step_whose_gradient_is_not_finite_changes_no_weight_and_is_counted(
    run, tmp_path, monkeypatch, caplog
):
    """Nor a momentum, nor an optimizer's count; the mean leaves the bad image out."""
    from selfdistill.pipelines.train import optim

    states = []
    original = optim.apply_gradients

    def watch(trained, optimizers, *others):
        def content():
            parameters = [p.detach().clone() for p in trained]
            buffers = [
                value.clone()
                for optimizer in optimizers
                for state in optimizer.state.values()
                for value in state.values()
            ]
            return parameters + buffers

        before = content()
        norm = original(trained, optimizers, *others)
        after = content()
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        states.append((bool(norm.isfinite()), same))
        return norm

    monkeypatch.setattr(optim, "apply_gradients", watch)
    monkeypatch.setattr("selfdistill.methods.dsd.DSD.loss", poisoned_in({4, 9}))
    checkpoint = run(tmp_path)
    assert [step for step, (finite, _) in enumerate(states) if not finite] == [4, 9]
    assert [step for step, (_, same) in enumerate(states) if same] == [4, 9]
    lines = [json.loads(line) for line in checkpoint.curves.read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 0, 1, 0]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert "network/reconstruction is not finite for 1 of 16 images" in caplog.text
    weights = load_file(checkpoint.path / "weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_skipping_survives_a_resumption_in_the_middle_of_an_interval(run, tmp_path, monkeypatch):
    monkeypatch.setattr("selfdistill.methods.dsd.DSD.loss", poisoned_in({4}))
    whole = content(run(tmp_path / "whole"))
    stopped_at(40, run, tmp_path / "broken", monkeypatch)  # the interval ends at 48
    assert content(run(tmp_path / "broken")) == whole


def test_skipped_steps_are_counted_once_when_the_number_of_ranks_changes(
    run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("selfdistill.methods.dsd.DSD.loss", poisoned_in({4}))
        stopped_at(40, run, tmp_path, monkeypatch)  # the interval ends at 48
    checkpoint = run(tmp_path, DistributedConfig(device="cpu", num_ranks=2))
    lines = [json.loads(line) for line in checkpoint.curves.read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 0, 0, 0]


def test_latents_that_overflow_in_a_probe_end_no_training(network, method):
    from selfdistill.methods.registry import build_method

    built = build_method(network, method, {})
    with torch.no_grad():
        built.network.latent_out.weight.fill_(torch.inf)
    batch = Batch(
        images=torch.rand(4, 3, 16, 16), labels=torch.arange(4), features=torch.randn(4, 4, 6),
        draws=Draws(0, torch.arange(4)),
    )  # fmt: skip
    found = built.diagnose(batch)
    assert not any(name.startswith(("rank", "std")) for name in found)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("neutral", [{"recompute_activations": True}, {"checkpoint_nimg": 16}])
def test_recomputing_activations_and_saving_more_often_change_no_byte(run, tmp_path, neutral):
    assert neutral.keys() <= NEUTRAL
    assert content(run(tmp_path / "kept")) == content(run(tmp_path / "again", **neutral))


def test_recomputing_activations_keeps_fewer_of_them(network, method):
    """Counted by what autograd saves for the backward pass, in bytes."""
    from selfdistill.methods.registry import build_method
    from selfdistill.pipelines.train.layers import recompute_layers

    def saved(built):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            h, _ = built.network.denoise(torch.randn(64, 4, 4))
            h.sum()
        return sum(sizes.values())

    plain, recomputed = build_method(network, method), build_method(network, method)
    recompute_layers(recomputed)
    assert saved(recomputed) < 0.5 * saved(plain)


def test_every_line_has_the_ranks_of_the_same_probe(run, tmp_path):
    lines = [json.loads(line) for line in run(tmp_path).curves.read_text().splitlines()]
    found = [line["diagnostics"] for line in lines]
    for one in found:
        assert 1 <= one["rank_target"] <= 4
        assert one["rank_margin"] == pytest.approx(one["rank_target"] - one["rank_projection"])
        assert len(one["channel_std_online"]) == 4
    assert found[0] != found[-1]


def test_without_a_probe_there_are_no_diagnostics(run, tmp_path):
    checkpoint = run(tmp_path, num_probe_images=0)
    lines = [json.loads(line) for line in checkpoint.curves.read_text().splitlines()]
    assert all("diagnostics" not in line for line in lines)


@pytest.fixture(scope="module")
def naive(method):
    """Naive joint training, whose projection has the rank of the noise (DSD, Fig. 2, case 1)."""
    weights = dict.fromkeys(type(method.root.weights).model_fields, 0.0)
    values = method.model_dump() | {
        "target": "live", "prediction": "velocity", "augmentation": None,
        "velocity_target": "average",
        "weights": weights | {"distillation": 1.0, "reconstruction": 1.0},
    }  # fmt: skip
    return type(method).model_validate(values)


def test_a_violated_inequality_is_said_once(
    images, network, naive, train_config, one_rank, tmp_path, caplog
):
    config = train_config.model_copy(update={"total_nimg": 320})
    train_row(images, None, network, naive, config, one_rank, tmp_path, {})
    assert caplog.text.count("The latents may be collapsing") == 1


def test_ranks_do_not_wait_for_heads_that_no_term_trains(
    images, network, naive, train_config, one_rank, tmp_path
):
    two_ranks = DistributedConfig(device="cpu", num_ranks=2)
    losses = []
    for name, machine in (("one", one_rank), ("two", two_ranks)):
        scratch = tmp_path / name
        checkpoint = train_row(images, None, network, naive, train_config, machine, scratch, {})
        lines = checkpoint.curves.read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_share_of_less_than_a_batch_is_refused(
    images, features, network, method, train_config, one_rank, tmp_path
):
    config = train_config.model_copy(update={"data_share": 0.1})
    with pytest.raises(ValueError, match=r"data_share 0\.1 of 40 images is less than a batch of 8"):
        train_row(images, features, network, method, config, one_rank, tmp_path, {})


def test_an_aligned_objective_without_features_is_refused(
    images, network, method, train_config, one_rank, tmp_path
):
    with pytest.raises(ValueError, match="aligns with a teacher"):
        train_row(images, None, network, method, train_config, one_rank, tmp_path, {})


def test_training_learns_pixels_features_and_labels(run, train_config, tmp_path):
    fast = train_config.optimizer.model_copy(update={"lr": 1.0e-2})
    length = {"total_nimg": 1_600, "log_nimg": 160, "checkpoint_nimg": 1_600}
    checkpoint = run(tmp_path, optimizer=fast, **length)
    lines = (checkpoint.path / "curves.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    # Not the whole loss: what the latents are distilled into moves with them.
    for term in ("reconstruction", "alignment", "classification"):
        assert last[f"network/{term}"] < 0.97 * first[f"network/{term}"], term
    assert set(last) == {
        "nimg", "loss", "lr", "grad_norm", "skipped_steps", "diagnostics",
        "network/distillation", "network/velocity", "network/reconstruction",
        "network/perceptual", "network/alignment", "network/representation",
        "network/classification",
    }  # fmt: skip


def test_damaged_weights_are_refused(run, tmp_path):
    checkpoint = run(tmp_path)
    file = checkpoint.path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        checkpoint.load(torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        Checkpoint.open(tmp_path / "nowhere")


def stopped_at(nimg, run, scratch, monkeypatch):
    """Run until SIGTERM comes after `nimg` images."""
    from selfdistill.methods.dsd import DSD

    original = DSD.after_step

    def ask(self, seen, batch_size):
        original(self, seen, batch_size)
        if seen == nimg:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DSD, "after_step", ask)
        with pytest.raises(SystemExit):
            run(scratch)


def test_more_ranks_go_on_with_the_same_curves(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    stopped_at(40, run, tmp_path / "broken", monkeypatch)
    resumed = run(tmp_path / "broken", DistributedConfig(device="cpu", num_ranks=2))
    curves = [
        [json.loads(line)["loss"] for line in c.curves.read_text().splitlines()]
        for c in (whole, resumed)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_a_torn_line_of_the_curves_does_not_stop_a_resumption(run, tmp_path, monkeypatch):
    whole = content(run(tmp_path / "whole"))
    stopped_at(40, run, tmp_path / "broken", monkeypatch)
    (directory,) = folders(tmp_path / "broken")
    with (directory / "curves.jsonl").open("a") as file:
        file.write('{"nimg": 48, "lo')
    assert content(run(tmp_path / "broken")) == whole


def test_smaller_micro_batches_go_on_with_the_same_job(run, tmp_path, monkeypatch):
    """After running out of memory, say: nothing is thrown away."""
    stopped_at(40, run, tmp_path, monkeypatch)
    checkpoint = run(tmp_path, micro_batch_size=2)
    assert folders(tmp_path) == [checkpoint.path]


def test_what_a_killed_writer_left_is_swept_away(run, tmp_path, monkeypatch):
    stopped_at(40, run, tmp_path, monkeypatch)
    (directory,) = folders(tmp_path)
    for leftover in (directory / ".state.pt.1.tmp", tmp_path / ".x.finished.1.tmp"):
        leftover.write_bytes(b"part")
    run(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_features_that_do_not_fit_the_network_are_named(
    images, network, method, train_config, one_rank, tmp_path
):
    with pytest.raises(ValueError, match="patch_size and teacher"):
        train_row(images, images, network, method, train_config, one_rank, tmp_path, {})


@pytest.fixture
def vit():
    return TeacherConfig.model_validate(
        {
            "architecture": "vit_small_patch16_dinov3", "weights": "random", "seed": 0,
            "overrides": {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4},
            "patch_size": 8, "dim": 64, "batch_size": 16,
            "cache": {"mirrored": True, "dtype": "float16"},
        }
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("int8", 1e-2)])
def test_a_teacher_on_disk_and_one_at_work_give_the_same_alignment_loss(
    images, network, method, train_config, one_rank, vit, tmp_path, dtype, tolerance
):
    wide = network.model_validate({**network.root.model_dump(), "teacher_dim": 64})
    cache = vit.cache.model_copy(update={"dtype": dtype})
    kept = features_job(images, vit.model_copy(update={"cache": cache}), one_rank)
    features = kept.build(tmp_path / "features")
    arguments = (wide, method, train_config, one_rank)
    cached = train_row(images, features, *arguments, tmp_path / "cached", {})
    online = train_row(images, None, *arguments, tmp_path / "online", {}, vit)
    losses = [
        [json.loads(line)["network/alignment"] for line in run.curves.read_text().splitlines()]
        for run in (cached, online)
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert losses[0] != losses[1]  # neither is the other
    assert cached.about["inputs"].keys() ^ online.about["inputs"].keys() == {"features", "teacher"}


def test_another_teacher_at_work_is_another_job_and_its_batch_size_is_not(
    images, network, method, train_config, one_rank, vit, tmp_path
):
    wide = network.model_validate({**network.root.model_dump(), "teacher_dim": 64})
    found = {}
    for name, changes in {"one": {}, "batch": {"batch_size": 3}, "seed": {"seed": 1}}.items():
        teacher = vit.model_copy(update=changes)
        arguments = (wide, method, train_config, one_rank, tmp_path / name, {}, teacher)
        found[name] = train_row(images, None, *arguments).about["fingerprint"]
    assert found["one"] == found["batch"] != found["seed"]
