"""SiDA in the one loop: three networks and their turns, stopped and resumed to the same bytes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.distributed_config import DistributedConfig
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_network, method_around
from selfdistill.methods.sid import SiD
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.train.job import train_row

SIDA = MethodConfig.model_validate(
    {
        "name": "sid", "alpha": 1.0, "start_level": 2.5, "largest_share": 0.8, "log_mean": -1.2,
        "log_deviation": 1.2, "generator_weight": 100, "fake_weight": 1, "half_life_nimg": 50,
        "ramp_up": 0.5, "normalize_weights": False,
        "adversary": {
            "generator_weight": 0.01, "fake_weight": 1, "rests_nimg": 24, "joins_nimg": 48,
            "largest_gradient": 1.0,
        },
        "augment": {"probability": 0.12},
    }
)  # fmt: skip
EDM2 = NetworkConfig.model_validate(
    {
        "name": "edm2", "latent_size": 16, "latent_channels": 3, "width": 64, "multipliers": [1, 1],
        "num_blocks": 1, "attention_sides": [8], "num_classes": 5, "conditional": True,
        "dropout": 0.1, "logvar_channels": 8,
    }
)  # fmt: skip
NETWORK = NetworkConfig.model_validate(
    {
        "name": "ddpmpp", "latent_size": 16, "latent_channels": 3, "width": 16,
        "multipliers": [1, 1], "num_blocks": 1, "attention_sides": [8], "num_classes": 5,
        "conditional": True, "dropout": 0.2, "augment_dim": 9,
    }
)  # fmt: skip
FILES = ("weights.safetensors", "checkpoint.json", "curves.jsonl")


def method_of(network):
    """Return the objective as the network needs it."""
    values = SIDA.model_dump()
    if network.root.name == "edm2":
        values["normalize_weights"] = True
    if network.root.name != "ddpmpp":
        values["augment"] = None
    if network.root.name == "dsd_vit":
        values["adversary"]["tap"] = {"kind": "channels", "block": 2}
        values["data_deviation"] = 1.0
    return MethodConfig.model_validate(values)


@pytest.fixture
def run(images, train_config, one_rank):
    def run(scratch, network=NETWORK, **changes):
        config = train_config.model_copy(update={"checkpoint_nimg": 16, "log_nimg": 16, **changes})
        method = method_of(network)
        return train_row(images, None, network, method, config, one_rank, scratch, {})

    return run


@pytest.mark.parametrize(
    ("chosen", "stop_at"),
    [(NETWORK, 16), (NETWORK, 64), (EDM2, 64), (None, 64)],
    ids=["rests", "edm", "edm2", "dsd"],
)
def test_several_networks_in_turns_resume_to_the_same_bytes(
    run, tmp_path, monkeypatch, network, chosen, stop_at
):
    """Stopped while the generator rests, or later; what is dropped is dropped again."""
    network = chosen or network  # the latter is DSD's
    whole, original = run(tmp_path / "whole", network), SiD.after_step

    class Killed(BaseException):
        pass

    def kill(self, nimg, batch_size):
        if nimg == stop_at + 8:
            raise Killed
        return original(self, nimg, batch_size)

    monkeypatch.setattr(SiD, "after_step", kill)
    with pytest.raises(Killed):
        run(tmp_path / "broken", network)
    assert list((tmp_path / "broken").rglob("state.pt"))
    monkeypatch.setattr(SiD, "after_step", original)
    resumed = run(tmp_path / "broken", network)
    for name in FILES:
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    names = {name.partition(".")[0] for name in load_file(whole.path / FILES[0])}
    assert names == {"network", "average"} | (set() if chosen else {"trunk"})


def test_the_generator_rests_until_its_time(run, tmp_path, monkeypatch):
    seen, original = {}, SiD.after_step

    def look(self, nimg, batch_size):
        original(self, nimg, batch_size)
        weights = self.network.state_dict()
        seen[nimg] = {name: value.clone() for name, value in weights.items()}

    monkeypatch.setattr(SiD, "after_step", look)
    run(tmp_path)

    def moved(before, after):
        return any(not seen[before][name].equal(seen[after][name]) for name in seen[before])

    assert not moved(8, 32)  # a step that begins at 24 images or fewer leaves it
    assert moved(32, 40)


def test_recomputed_activations_change_no_bit(run, tmp_path):
    """Dropped features are drawn again as they were."""
    kept, again = run(tmp_path / "a"), run(tmp_path / "b", recompute_activations=True)
    name = FILES[0]
    assert (kept.path / name).read_bytes() == (again.path / name).read_bytes()


def test_turns_may_have_optimizers_of_their_own(run, tmp_path, train_config):
    """SiD's generator on FFHQ has another momentum than its fake-score network."""
    own = train_config.optimizer.model_copy(update={"lr": train_config.optimizer.lr / 4})
    same = {"fake_score": train_config.optimizer}
    common, again = run(tmp_path / "a"), run(tmp_path / "b", optimizers=same)
    slower = run(tmp_path / "c", optimizers={"network": own})
    weights = [load_file(one.path / FILES[0]) for one in (common, again, slower)]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    assert any(not value.equal(weights[2][name]) for name, value in weights[0].items())
    with pytest.raises(
        ValueError, match=r"optimizers\.generator: there is no such turn; there are"
    ):
        run(tmp_path / "d", optimizers={"generator": own})


@pytest.mark.parametrize("broken", [1, None])
def test_gradients_that_are_not_finite_are_mended_and_counted(run, tmp_path, monkeypatch, broken):
    """A few are mended, and the training goes on; a whole turn's end it."""
    original = SiD.fake_score_loss

    def breaking(self, batch):
        for parameter in list(self.fake_score.parameters())[:broken]:
            parameter.register_hook(lambda gradient: gradient * torch.nan)
        return original(self, batch)

    monkeypatch.setattr(SiD, "fake_score_loss", breaking)
    if broken is None:
        with pytest.raises(FloatingPointError, match="1 of fake_score's gradients was not finite"):
            run(tmp_path)
        return
    lines = [json.loads(line) for line in run(tmp_path).curves.read_text().splitlines()]
    assert all(0 < line["mended_fake_score"] < 0.01 for line in lines)
    assert all(line.get("mended_network", 0) == 0 for line in lines)
    assert all(line["skipped_steps"] == 0 for line in lines)


def test_sid2a_learns_from_the_teacher_and_starts_as_a_generator():
    teacher, generator = (build_network(NETWORK) for _ in range(2))
    method = method_around(generator, SIDA, {}, teacher)
    for part, origin in (
        (method.network, generator), (method.average, generator),
        (method.fake_score, teacher), (method.teacher, teacher),
    ):  # fmt: skip
        own = origin.state_dict()
        assert all(value.equal(own[name]) for name, value in part.state_dict().items())
    trained = {name for name, value in method.named_parameters() if value.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"network", "fake_score"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chosen", [NETWORK, EDM2], ids=["edm", "edm2"])
def test_bf16_on_a_gpu_follows_the_cpus_float32(images, train_config, one_rank, tmp_path, chosen):
    """Both turns of a U-Net under autocast; twice the same bytes, and others than float32's."""
    network = NetworkConfig.model_validate({**chosen.model_dump(), "dropout": 0.0})
    gpu = DistributedConfig(device="cuda", num_ranks=1)
    found = {}
    for name, machine, precision in (
        ("cpu", one_rank, "fp32"), ("gpu", gpu, "fp32"), ("bf16", gpu, "bf16"),
        ("again", gpu, "bf16"),
    ):  # fmt: skip
        config = train_config.model_copy(update={"precision": precision, "total_nimg": 80})
        arguments = (network, method_of(network), config, machine, tmp_path / name, {})
        found[name] = train_row(images, None, *arguments)
    cpu, bf16 = (
        [json.loads(line) for line in found[name].curves.read_text().splitlines()]
        for name in ("cpu", "bf16")
    )
    for expected, line in zip(cpu, bf16, strict=True):
        for name in (name for name in expected if "/" in name):
            assert line[name] == pytest.approx(expected[name], rel=0.05), name
    made = {name: (one.path / FILES[0]).read_bytes() for name, one in found.items()}
    assert made["bf16"] == made["again"]
    assert made["bf16"] != made["gpu"]


@pytest.mark.parametrize(
    ("chosen", "strategy"),
    [
        (EDM2, "fsdp"),
        (NETWORK, "ddp"),
        pytest.param(None, "fsdp", marks=pytest.mark.slow),
        pytest.param(EDM2, "ddp", marks=pytest.mark.slow),
        pytest.param(None, "ddp", marks=pytest.mark.slow),
    ],
    ids=["edm2-fsdp", "ddpmpp-ddp", "dsd-fsdp", "edm2-ddp", "dsd-ddp"],
)
def test_two_ranks_train_as_one(images, train_config, tmp_path, network, chosen, strategy):
    """Weights that are brought back to their norm are cut among ranks; so is one of one row."""
    network = chosen or network
    if chosen:
        narrow = {"dropout": 0.0}
        narrow |= {"width": 16, "attention_sides": ()} if chosen is EDM2 else {}
        network = NetworkConfig.model_validate({**chosen.model_dump(), **narrow})
    values = method_of(network).model_dump()
    values["adversary"] |= {"rests_nimg": 0, "joins_nimg": 8}
    method = MethodConfig.model_validate(values)
    sizes = {"micro_batch_size": 4, "total_nimg": 32, "checkpoint_nimg": 32, "warmup_nimg": 0}
    config = train_config.model_copy(update=sizes)
    lines, weights = [], []
    for num_ranks in (1, 2):
        machine = {"device": "cpu", "num_ranks": num_ranks, "strategy": strategy}
        machine = DistributedConfig.model_validate({**machine, "num_workers": num_ranks})
        scratch = tmp_path / str(num_ranks)
        found = train_row(images, None, network, method, config, machine, scratch, {})
        lines.append([json.loads(line) for line in found.curves.open()])
        weights.append(load_file(found.path / FILES[0]))
    for expected, found in zip(*lines, strict=True):
        for name in (name for name in expected if "/" in name):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    assert {"fake_score/discrimination", "network/score_identity", "network/deception"} <= set(
        expected
    )
    expected, found = weights
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3, msg=name)
