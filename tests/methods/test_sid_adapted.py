"""SiD of DiT, SiT and DSD: levels, frozen parts, gradients, samples, and what is released."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from selfdistill.data.loader import Batch
from selfdistill.diffusion.config import SolverConfig
from selfdistill.diffusion.levels import level_at, loss_weight
from selfdistill.draws import Draws
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method, code_of
from selfdistill.methods.release import Release
from selfdistill.methods.sid_losses import Denoised, score_identity
from selfdistill.methods.start import fill
from selfdistill.networks.config import NetworkConfig
from selfdistill.sources import Code

SID = {
    "name": "sid", "alpha": 1.0, "start_level": 2.5, "largest_share": 0.8, "log_mean": -0.4,
    "log_deviation": 1.0, "generator_weight": 100, "fake_weight": 1, "half_life_nimg": 500_000,
    "ramp_up": 0.05, "normalize_weights": False, "data_deviation": 1.0,
    "adversary": {
        "generator_weight": 0.01, "fake_weight": 1, "rests_nimg": 100, "joins_nimg": 200,
        "largest_gradient": None, "tap": {"kind": "channels", "block": 2},
    },
}  # fmt: skip
TRANSFORMER = {
    "latent_size": 8, "latent_channels": 3, "patch_size": 2, "width": 16, "depth": 3,
    "num_heads": 2, "num_classes": 5,
}  # fmt: skip
VALUES = {
    "dit": {**TRANSFORMER, "name": "dit", "learn_sigma": True},
    "sit": {**TRANSFORMER, "name": "sit", "learn_sigma": False, "noise_at": 0, "projectors": None},
}
ONE_STEP = SolverConfig(
    solver="edm", num_steps=1, levels=(2.5,), guidance=1, guidance_interval=(0, 1)
)


@pytest.fixture
def configs(network):
    def choose(name, **changes):
        values = network.model_dump() if name == "dsd_vit" else VALUES[name]
        chosen = MethodConfig.model_validate({**SID, **changes})
        return NetworkConfig.model_validate(values), chosen

    return choose


@pytest.fixture
def build(configs):
    def build(name, random=True, **changes):
        torch.manual_seed(0)
        method = build_method(*configs(name, **changes), {})
        for part in (method.network, method.fake_score, method.teacher, method.average):
            for parameter in part.parameters():
                if random:
                    nn.init.normal_(parameter, std=0.2)
        method.before_step(300)
        return method

    return build


def batch_of(method, size=4):
    index = torch.arange(size)
    images = Draws(1, index).normal("images", *method.data_shape())
    return Batch(images=images, labels=index % 5, features=None, draws=Draws(0, index))


@pytest.mark.parametrize("name", ["dit", "sit", "dsd_vit"])
def test_terms_are_those_of_the_formulas_at_levels_that_the_network_knows(build, name):
    method = build(name)
    batch = batch_of(method)
    draws, shape = batch.draws, method.noise_shape()
    beside = (-1, *[1] * len(shape))
    sigma = method.known_level(level_at(0.8 * draws.uniform("level", 1).squeeze(1)))
    x = method.network(2.5 * draws.normal("z", *shape), torch.full((4,), 2.5), batch.labels)
    x_t = x + sigma.view(beside) * draws.normal("eps", *shape)
    f_phi = method.teacher(x_t, sigma, batch.labels)
    f_psi = method.fake_score(x_t, sigma, batch.labels)
    term = score_identity(x, Denoised(f_phi, f_psi), 1.0).flatten(1).sum(dim=1)
    torch.testing.assert_close(method.loss(batch)["score_identity"], 0.5 * 100 * term)

    sigma = (-0.4 + draws.normal("fake_level", 1).squeeze(1)).exp()
    sigma = method.known_level(sigma)
    x = method.network(2.5 * draws.normal("fake_z", *shape), torch.full((4,), 2.5), batch.labels)
    x_t = x + sigma.view(beside) * draws.normal("fake_eps", *shape)
    error = (method.fake_score(x_t, sigma, batch.labels) - x).square().flatten(1).sum(dim=1)
    expected = loss_weight(sigma, 1.0) * error
    torch.testing.assert_close(method.fake_score_loss(batch)["denoising"], expected)


@pytest.mark.parametrize("name", ["dit", "sit", "dsd_vit"])
@pytest.mark.parametrize("tap", [{"kind": "channels", "block": 1}, {"kind": "tokens"}])
def test_all_that_a_turn_trains_has_a_gradient_and_nothing_else(build, name, tap):
    method = build(name, adversary={**SID["adversary"], "tap": tap})
    batch = batch_of(method)
    for turn, loss_of in method.turns().items():
        method.zero_grad()
        for other in method.turns():
            getattr(method, other).requires_grad_(other == turn)
        if name != "dsd_vit":
            getattr(method, turn).network.pos_embed.requires_grad_(False)
        losses = loss_of(batch)
        assert len(losses) == 2
        sum(losses.values()).sum().backward()
        reached = {key for key, p in method.named_parameters() if p.grad is not None}
        trained = {key for key, p in method.named_parameters() if p.requires_grad}
        assert reached == trained
        assert {key.partition(".")[0] for key in trained} == {turn}


@pytest.mark.parametrize("name", ["dit", "sit"])
def test_fixed_positions_and_idle_projectors_are_trained_by_no_turn(build, monkeypatch, name):
    """Or positions would move, and ranks wait for the projectors' gradient."""
    if name == "sit":
        monkeypatch.setitem(VALUES["sit"], "projectors", {"block": 1, "width": 16, "dims": [6]})
    method = build(name)
    for turn in method.turns():
        frozen = {k for k, p in getattr(method, turn).named_parameters() if not p.requires_grad}
        heads = {key.split(".")[1] for key in frozen}
        assert heads == {"pos_embed"} | ({"projectors"} if name == "sit" else set())


def test_the_clean_heads_teacher_is_another_one_and_all_begin_as_the_vit(build):
    velocity, clean = (
        build("dsd_vit", random=False, teacher_head=head) for head in ("velocity", "clean")
    )
    batch = batch_of(velocity)
    assert velocity.loss(batch)["score_identity"].tolist() == [0] * 4
    assert clean.loss(batch)["score_identity"].abs().min() > 0
    sigma, z = torch.full((4,), 0.7), torch.randn(4, *clean.noise_shape())
    t, vit = 1 / (1 + sigma), clean.trunk
    expected = vit.predict_z0(vit.denoise(t[:, None, None] * z)[0], t, batch.labels)
    torch.testing.assert_close(clean.teacher(z, sigma, batch.labels), expected)


def test_of_dsd_the_vit_encodes_and_decodes_and_no_turn_moves_it(build):
    method = build("dsd_vit")
    batch, before = batch_of(method), copy.deepcopy(method.trunk.state_dict())
    assert method.data_shape() == (3, 16, 16)
    assert torch.equal(method.clean(batch), method.trunk.encode(batch.images))
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    for loss_of in method.turns().values():
        sum(loss_of(batch).values()).sum().backward()
    optimizer.step()
    method.after_step(304, 4)
    after = method.trunk.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    eps = batch.draws.normal("sample", *method.noise_shape())
    z0 = method.average(2.5 * eps, torch.full((4,), 2.5), batch.labels)
    expected = method.trunk.decode(method.trunk.denoise(z0)[0])
    found = method.sample(eps, batch.labels, ONE_STEP, batch.draws)
    assert found.shape == (4, 3, 16, 16)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["dit", "dsd_vit"])
def test_a_release_samples_as_its_checkpoint(build, configs, tmp_path, name):
    method, (network, chosen) = build(name), configs(name)
    written = {"network_config": network, "method_config": chosen, "about": {"nimg": 0}}
    checkpoint = Checkpoint.write(tmp_path / "checkpoint", method, **written)
    names = {key.partition(".")[0] for key in checkpoint.load(torch.device("cpu")).state_dict()}
    assert names == {"network", "average"} | ({"trunk"} if name == "dsd_vit" else set())
    release = Release.write(
        tmp_path / "release", checkpoint, class_names=list("abcde"), sampling=ONE_STEP, card="#\n"
    )
    labels, draws = torch.arange(4), Draws(0, torch.arange(4))
    eps = draws.normal("sample", *method.noise_shape())
    expected = method.sample(eps, labels, ONE_STEP, draws)
    found = Release.open(tmp_path / "release").method.sample(eps, labels, ONE_STEP, draws)
    torch.testing.assert_close(found, expected)
    if name == "dit":
        assert (
            release.method.network.network.state_dict().keys()
            == method.released().state_dict().keys()
        )


def test_a_generator_of_dsd_is_no_vit_to_start_from(build, configs, tmp_path):
    network, chosen = configs("dsd_vit")
    written = {"network_config": network, "method_config": chosen, "about": {"nimg": 0}}
    Checkpoint.write(tmp_path, build("dsd_vit"), **written)
    with pytest.raises(ValueError, match="is not the one that the row starts with"):
        fill(build("dsd_vit").trunk, tmp_path)


def test_the_adapter_is_code_of_the_rows_that_use_it_alone():
    def modules(network, method="sid"):
        return {Path(file).stem for file in Code(code_of(network, method)).relative_files}

    assert not modules("edm2") & {"adapted", "dsd_path", "sid_adapted", "sid_dsd"}
    assert not modules("dsd_vit", "dsd") & {"adapted", "dsd_path", "sid"}
    assert {"adapted", "sid_adapted", "dit"} <= modules("dit")
    assert not modules("dit") & {"dsd_path", "dsd_vit", "sid_dsd"}
    assert {"adapted", "dsd_path", "sid_dsd", "sid"} <= modules("dsd_vit")
