"""SiT and REPA's SiT: parity with the public implementations, times, and what is dropped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from selfdistill.networks.dit_config import ProjectorConfig, SiTConfig
from selfdistill.networks.dit_weights import load_published
from selfdistill.networks.fusion import Fusion
from selfdistill.networks.sit import SiT

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"


def config(**changes):
    values = {
        "name": "sit", "latent_size": 8, "latent_channels": 4, "patch_size": 2, "width": 32,
        "depth": 3, "num_heads": 4, "num_classes": 10, "learn_sigma": True, "noise_at": 0,
        "projectors": None,
    }  # fmt: skip
    return SiTConfig.model_validate(values | changes)


def golden(name):
    file = GOLDENS / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["config"])
    tensors = load_file(file)
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
    sizes = {
        "width": about["hidden_size"],
        "depth": about["depth"],
        "num_heads": about["num_heads"],
    }
    return tensors, state, sizes, about


def randomised(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def test_sit_computes_what_the_public_implementation_does():
    tensors, state, sizes, _ = golden("sit")
    network = SiT(config(**sizes))
    network.load_state_dict(state)
    out = network(tensors["x"], tensors["t"], tensors["y"])
    assert (out - tensors["out"]).abs().max() < 1e-5


def test_repas_sit_computes_what_the_public_implementation_does():
    """Its time and its velocity run the other way."""
    tensors, state, sizes, about = golden("repa")
    projectors = ProjectorConfig(
        block=about["encoder_depth"], width=about["projector_dim"], dims=about["z_dims"]
    )
    network = SiT(config(learn_sigma=False, noise_at=1, projectors=projectors, **sizes))
    network.load_state_dict(state)
    t = 1 - tensors["t"]
    out = network(tensors["x"], t, tensors["y"])
    assert (out + tensors["out"]).abs().max() < 1e-5
    (projected,) = network.project(tensors["x"], t, tensors["y"])
    assert (projected - tensors["projected.0"]).abs().max() < 1e-5


def test_the_largest_has_the_size_of_its_published_file():
    """SiT-XL/2 is DiT-XL/2 to the parameter."""
    sizes = {"latent_size": 32, "width": 1152, "depth": 28, "num_heads": 16, "num_classes": 1000}
    with torch.device("meta"):
        network = SiT(config(**sizes))
    assert sum(p.numel() for p in network.parameters()) == 675_129_632
    assert network.state_dict()["final_layer.linear.weight"].shape == (32, 1152)


def test_noise_at_the_other_end_is_the_same_network_at_the_mirrored_time_and_velocity():
    ours, theirs = randomised(SiT(config())), randomised(SiT(config(noise_at=1)))
    z, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([0.25, 0.875]), torch.tensor([1, 10])
    torch.testing.assert_close(theirs(z, t, labels), -ours(z, 1 - t, labels))


def test_what_another_pass_recorded_is_mixed_in():
    network = randomised(SiT(config(noise_at=1)))
    z, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([0.25, 0.5]), torch.tensor([1, 2])
    plain = network(z, t, labels)
    for site in ("branch", "gated", "block"):
        out, recorded = network.record(z, t, labels, site)
        assert torch.equal(out, plain)
        assert not torch.allclose(network(z, t + 0.25, labels, Fusion(site, 0.5, recorded)), plain)
        assert torch.allclose(network(z, t, labels, Fusion(site, 0.5, recorded)), plain, atol=1e-5)


def test_repas_older_names_of_blocks_load(tmp_path):
    projectors = ProjectorConfig(block=2, width=12, dims=(6,))
    network = randomised(SiT(config(learn_sigma=False, noise_at=1, projectors=projectors)))
    state = network.state_dict()
    old = {key.replace("blocks.2.", "decoder_blocks.0."): value for key, value in state.items()}
    file = tmp_path / "last.pt"
    torch.save({"ema": old, "model": {}, "steps": 4_000_000}, file)
    other = SiT(network.config)
    load_published(other, file)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())


def test_projectors_are_asked_for_by_name_and_fit_the_depth():
    with pytest.raises(ValueError, match="has no projectors"):
        SiT(config()).project(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"projectors\.block 4: there are only 3 blocks"):
        config(projectors={"block": 4, "width": 8, "dims": [8]})
