"""DiT: parity with the public implementation, published sizes and keys, and what fusion mixes."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfdistill.networks.dit import DiT, position_table
from selfdistill.networks.dit_config import DiTConfig
from selfdistill.networks.dit_weights import load_published, write_published
from selfdistill.networks.fusion import Fusion

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens" / "dit.safetensors"
needs_goldens = pytest.mark.skipif(not GOLDENS.is_file(), reason=f"{GOLDENS} is absent")

# Depth, width, heads; parameters with the fixed positions at 256 and 512 pixels, and trained ones
# (facebookresearch/DiT; the largest confirmed by fast-DiT's log).
SIZES = {
    "S": (12, 384, 6, 32_963_360, 33_258_272, 32_865_056),
    "B": (12, 768, 12, 130_512_416, 131_102_240, 130_315_808),
    "L": (24, 1024, 16, 458_102_816, 458_889_248, 457_840_672),
    "XL": (28, 1152, 16, 675_129_632, 676_014_368, 674_834_720),
}


def config(**changes):
    values = {
        "name": "dit", "latent_size": 8, "latent_channels": 4, "patch_size": 2, "width": 32,
        "depth": 3, "num_heads": 4, "num_classes": 10, "learn_sigma": True,
    }  # fmt: skip
    return DiTConfig.model_validate(values | changes)


@pytest.fixture
def network():
    """Random weights everywhere: as initialised, the gates are closed."""
    torch.manual_seed(0)
    network = DiT(config())
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(2, 4, 8, 8, generator=generator)
    return z_t, torch.tensor([500, 20]), torch.tensor([3, 10])


@needs_goldens
def test_it_computes_what_the_public_implementation_does():
    tensors = load_file(GOLDENS)
    with safe_open(GOLDENS, "pt") as file:
        about = json.loads(file.metadata()["config"])
    network = DiT(
        config(width=about["hidden_size"], depth=about["depth"], num_heads=about["num_heads"])
    )
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
    network.load_state_dict(state)
    out = network(tensors["x"], tensors["t"], tensors["y"])
    assert (out - tensors["out"]).abs().max() < 1e-5
    assert torch.equal(position_table(4, about["hidden_size"])[None], state["pos_embed"])


@pytest.mark.parametrize("size", SIZES)
def test_parameters_and_keys_are_those_of_the_published_networks(size):
    depth, width, num_heads, small, large, trained = SIZES[size]
    for latent_size, number in ((32, small), (64, large)):
        with torch.device("meta"):
            network = DiT(
                config(
                    latent_size=latent_size, width=width, depth=depth, num_heads=num_heads,
                    num_classes=1000,
                )
            )  # fmt: skip
        sizes = [p.numel() for p in network.parameters() if p.requires_grad]
        assert sum(p.numel() for p in network.parameters()) == number
        assert sum(sizes) == trained
        state = network.state_dict()
        assert len(state) == 12 + 10 * depth
        shapes = {
            "pos_embed": (1, (latent_size // 2) ** 2, width),
            "x_embedder.proj.weight": (width, 4, 2, 2),
            "t_embedder.mlp.2.bias": (width,),
            "y_embedder.embedding_table.weight": (1001, width),
            "blocks.0.attn.qkv.weight": (3 * width, width),
            "blocks.11.mlp.fc1.weight": (4 * width, width),
            "blocks.11.adaLN_modulation.1.weight": (6 * width, width),
            "final_layer.linear.weight": (32, width),
            "final_layer.adaLN_modulation.1.bias": (2 * width,),
        }
        assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_as_initialised_it_predicts_zero_for_any_input(inputs):
    assert torch.equal(DiT(config())(*inputs), torch.zeros(2, 8, 8, 8))


def test_what_another_pass_recorded_is_mixed_in_with_its_weight(network, inputs):
    """A pass mixed with itself is that pass; with weight 1 and other times, it is the other one's
    branches behind its own gates."""
    z_t, t, labels = inputs
    plain = network(*inputs)
    for site in ("branch", "gated", "block"):
        out, recorded = network.record(*inputs, site)
        assert torch.equal(out, plain)
        assert [len(found) for found in recorded] == [1 if site == "block" else 2] * 3
        assert all(found.shape == (2, 16, 32) for block in recorded for found in block)
        again = network(*inputs, Fusion(site, 0.3, recorded))
        torch.testing.assert_close(again, plain)
        other, _ = network.record(z_t, t + 100, labels, site)
        none = network(z_t, t + 100, labels, Fusion(site, 0.0, recorded))
        assert torch.equal(none, other)
        mixed = network(z_t, t + 100, labels, Fusion(site, 0.3, recorded))
        assert not torch.allclose(mixed, other)


def test_the_stream_of_the_last_block_mixed_whole_is_the_other_passes_stream(network, inputs):
    z_t, t, labels = inputs
    _, recorded = network.record(*inputs, "block")
    condition = network.condition(t + 100, labels)
    expected = network.to_latents(recorded[-1][0], condition)
    fused = network(z_t, t + 100, labels, Fusion("block", 1.0, recorded))
    torch.testing.assert_close(fused, expected)


def test_mixed_features_carry_no_gradient_and_own_ones_their_share(network, inputs):
    """With one block and mixing before the gate, the branch's own part counts (1 - mu)."""
    with torch.no_grad():
        _, recorded = network.record(*inputs, "branch")
    last = network.blocks[-1].mlp.fc2.bias

    def gradient(fusion):
        network.zero_grad()
        network(*inputs, fusion).sum().backward()
        return last.grad.clone()

    torch.testing.assert_close(
        gradient(Fusion("branch", 0.25, recorded)), 0.75 * gradient(None), rtol=1e-4, atol=1e-5
    )
    assert not any(found.requires_grad for block in recorded for found in block)


@pytest.mark.parametrize("nested", [None, "ema", "model"])
def test_published_files_load_and_are_written_in_the_same_layout(network, tmp_path, nested):
    file = tmp_path / "DiT.pt"
    write_published(network, file)
    state = torch.load(file, weights_only=True)
    if nested:
        content = {nested: state, "opt": {"state": {}}, "args": argparse.Namespace(epochs=3)}
        torch.save(content | ({"model": {}} if nested == "ema" else {}), file)
    other = DiT(config())
    load_published(other, file)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())
    assert other.state_dict().keys() == state.keys()


def test_another_networks_file_is_refused_and_its_keys_named(network, tmp_path):
    state = {key: value.clone() for key, value in network.state_dict().items()}
    file = tmp_path / "other.safetensors"
    state["blocks.3.mlp.fc2.bias"] = state.pop("blocks.2.mlp.fc2.bias")
    save_file(state, file)
    with pytest.raises(
        ValueError,
        match=r"other\.safetensors is not a DiT of depth 3.*missing: blocks\.2\.mlp\.fc2\.bias; "
        r"unexpected: blocks\.3\.mlp\.fc2\.bias",
    ):
        load_published(DiT(config()), file)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(network, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "evil.pt"
    torch.save({"ema": network.state_dict(), "args": Evil()}, file)
    with pytest.raises(ValueError, match=r"evil\.pt is not a file of weights"):
        load_published(DiT(config()), file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_size": 9}, "latent_size 9 is no multiple of patch_size 2"),
        ({"num_heads": 5}, "width 32 is no multiple of num_heads 5"),
        ({"width": 30, "num_heads": 5}, "multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
