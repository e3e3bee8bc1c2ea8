"""Networks of other processes as denoisers: closed forms, and bits of the network's own pass."""

import pytest
import torch
from torch import nn

from selfdistill.diffusion.process import PROCESSES
from selfdistill.methods.registry import build_network
from selfdistill.networks.adapted import AdaptedDenoiser
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dsd_path import DiffusionPath
from selfdistill.networks.tap_config import ChannelsTap, TokensTap

TRANSFORMER = {
    "latent_size": 8, "latent_channels": 3, "patch_size": 2, "width": 16, "depth": 3,
    "num_heads": 2, "num_classes": 5,
}  # fmt: skip
VALUES = {
    "dit": {**TRANSFORMER, "name": "dit", "learn_sigma": True},
    "sit": {**TRANSFORMER, "name": "sit", "learn_sigma": True, "noise_at": 1, "projectors": None},
}
LAST = {"dit": "final_layer", "sit": "final_layer", "dsd_vit": "velocity_out"}
TOKENS = TokensTap(kind="tokens")
DEVIATIONS = torch.tensor([0.3, 1.0, 2.0])


@pytest.fixture
def built(network):
    def build(name):
        values = network.model_dump() if name == "dsd_vit" else VALUES[name]
        torch.manual_seed(0)
        made = build_network(NetworkConfig.model_validate(values))
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
        return DiffusionPath(made) if name == "dsd_vit" else made

    return build


def at(block):
    return ChannelsTap(kind="channels", block=block)


def inputs(network):
    torch.manual_seed(1)
    x = torch.randn(4, *network.noise_shape)
    return x, torch.tensor([0.1, 0.7, 2.5, 20.0]), torch.tensor([0, 1, 4, 5])


class Exact(nn.Module):
    """What networks of a process should predict of independent Gaussian data, (N, 3)."""

    noise_shape, null_class, config = (3,), 5, None

    def __init__(self, process):
        super().__init__()
        self.process, self._of = process, PROCESSES[process]

    def forward(self, z_t, t, labels):
        ones = torch.ones(len(t), 1)
        a, b = self._of.noised(ones, 0 * ones, t), self._of.noised(0 * ones, ones, t)
        total = (a * DEVIATIONS).square() + b.square()
        x0, eps = a * DEVIATIONS.square() / total * z_t, b / total * z_t
        variance = torch.ones(len(t), 3 if self.process == "linear_chain" else 0)
        return torch.cat((self._of.target(x0, eps), variance), dim=1)


@pytest.mark.parametrize("process", ["linear_chain", "linear_path"])
def test_an_exact_network_becomes_the_exact_denoiser(process):
    """E[x0 | x] = s^2 / (s^2 + sigma^2) x, at the levels that the network knows."""
    denoiser = AdaptedDenoiser(Exact(process), None)
    sigma = denoiser.nearest_level(torch.tensor([0.02, 0.1, 0.5, 1.0, 2.5, 8.0]))
    x = (DEVIATIONS**2 + sigma[:, None] ** 2).sqrt() * torch.randn(6, 3)
    variance = DEVIATIONS.square()
    expected = variance / (variance + sigma[:, None].square()) * x
    found = denoiser(x, sigma, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_chain_is_asked_at_its_own_levels_and_a_path_at_any(built):
    drawn = torch.tensor([0.002, 0.5, 2.5, 24.0, 500.0])
    chain, path = (AdaptedDenoiser(built(name), None) for name in ("dit", "sit"))
    level = chain.nearest_level(drawn)
    assert torch.equal(chain.nearest_level(level), level)
    torch.testing.assert_close(level[1:4], drawn[1:4], rtol=0.01, atol=0)
    assert level[0] == pytest.approx(0.01, rel=1e-2)
    assert level[-1] == pytest.approx(157.4, rel=1e-2)
    assert torch.equal(path.nearest_level(drawn), drawn)


@pytest.mark.parametrize("name", ["dit", "sit", "dsd_vit"])
def test_a_pass_that_judges_denoises_to_the_same_bits(built, name):
    network = built(name)
    x, sigma, labels = inputs(network)
    plain = AdaptedDenoiser(network, None)
    clean = plain(x, sigma, labels)
    assert clean.shape == x.shape
    grid = network.config.grid
    shapes = {at(1): (4, 1, grid, grid), at(3): (4, 1, grid, grid), TOKENS: (4, 1, 16)}
    for tap, shape in shapes.items():
        denoiser = AdaptedDenoiser(network, tap)
        found, logits = denoiser.denoise_and_judge(x, sigma, labels)
        assert torch.equal(found, clean)
        assert torch.equal(logits, denoiser.judge(x, sigma, labels))
        assert logits.shape == shape
        assert logits.std() > 0
    assert torch.equal(plain.denoise_and_judge(x, sigma, labels)[0], clean)
    with pytest.raises(ValueError, match="no tap"):
        plain.judge(x, sigma, labels)


@pytest.mark.parametrize("name", ["dit", "sit", "dsd_vit"])
def test_a_judgement_moves_what_comes_before_the_tap_alone(built, name):
    network = built(name)
    x, sigma, labels = inputs(network)
    judge = AdaptedDenoiser(network, at(2)).judge
    judge(x, sigma, labels).sum().backward()
    first, second, third = network.layers()
    for block in (first, second):
        assert all(p.grad is not None for p in block.parameters())
    for part in (third, getattr(network, LAST[name])):
        assert all(p.grad is None for p in part.parameters())
    network.zero_grad()
    AdaptedDenoiser(network, TOKENS).judge(x, sigma, labels).sum().backward()
    last = getattr(network, LAST[name])
    assert all(p.grad is None for p in last.linear.parameters())
    assert all(p.grad is not None for p in third.parameters())


def test_map_places_are_those_of_the_patches(built):
    """A change of one patch's tokens alone is seen at its place, register tokens nowhere."""
    network = built("dsd_vit")
    denoiser, grid = AdaptedDenoiser(network, at(1)), network.config.grid
    tokens = torch.arange(1.0, 1 + network.config.num_registers + grid**2)
    found = denoiser._logits(tokens[None, :, None].expand(1, -1, 16), torch.empty(0))
    expected = tokens[network.config.num_registers :].view(1, 1, grid, grid)
    assert torch.equal(found, expected)


def test_the_path_gives_the_vits_bits_and_holds_nothing_else(network):
    torch.manual_seed(0)
    vit = build_network(network)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    path, clean = DiffusionPath(vit), DiffusionPath(vit, predicts_clean=True)
    z_t, t, labels = torch.randn(3, *path.noise_shape), torch.rand(3), torch.tensor([0, 3, 5])
    h, _ = vit.denoise(z_t)
    assert torch.equal(path(z_t, t, labels), vit.predict_velocity(h, t, labels))
    assert torch.equal(clean(z_t, t, labels), vit.predict_z0(h, t, labels))
    heads = {"image_in", "image_out", "latent_out", "class_out", "teacher_out", "mask_token"}
    heads |= {"representation_out"}
    for part, head in ((path, "z0_out"), (clean, "velocity_out")):
        names = {name.partition(".")[0] for name in part.state_dict()}
        assert not names & (heads | {head})
    with torch.no_grad():
        path.blocks[0].norm1.weight.add_(1)
    assert not torch.equal(path.blocks[0].norm1.weight, vit.blocks[0].norm1.weight)


def test_the_clean_head_is_taken_at_its_word(network):
    path = DiffusionPath(build_network(network), predicts_clean=True)
    denoiser = AdaptedDenoiser(path, None)
    x, sigma, labels = inputs(path)
    t = 1 / (1 + sigma)
    torch.testing.assert_close(
        denoiser(x, sigma, labels), path(t[:, None, None] * x, t, labels), atol=0, rtol=0
    )
