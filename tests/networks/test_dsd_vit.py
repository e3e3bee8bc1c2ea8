import pytest
import torch

from selfdistill.networks.dsd_vit import DSDViT, normalize_latent, rotary_table, rotate
from selfdistill.networks.dsd_vit_config import DSDViTConfig

SIZES = {"dsd_s": (640, 7, 10), "dsd_m": (896, 11, 14), "dsd_b": (1024, 15, 16)}

# Millions of parameters. The paper (arXiv:2511.14716, Sec. 4.1) gives the depths and the totals 42,
# 118 and 205; the split is that of the one plain ViT that fits them.
BUDGET = {
    "patch convolution": (("image_in.0",), (0.492, 0.689, 0.787)),
    "1x1 convolution": (("image_in.2",), (0.410, 0.804, 1.050)),
    "ViT blocks": (("blocks",), (29.541, 96.454, 176.347)),
    "latent in and out": (("latent_in", "latent_out"), (0.021, 0.029, 0.034)),
    "DiT layer": (("dit_layer",), (7.382, 14.464, 18.890)),
    "two outputs": (("z0_out", "velocity_out"), (1.661, 3.244, 4.231)),
    "time": (("time_embedding",), (0.575, 1.034, 1.313)),
    "class table": (("class_embedding",), (0.641, 0.897, 1.025)),
    "decoder": (("image_out",), (0.492, 0.689, 0.787)),
    "classifier": (("class_out",), (0.017, 0.017, 0.017)),
    "alignment": (("teacher_out",), (0.492, 0.689, 0.787)),
}
TOTALS = {"dsd_s": 41_730_028, "dsd_m": 119_016_428, "dsd_b": 205_275_372}


def config(**changes):
    values = {
        "name": "dsd_vit", "resolution": 32, "patch_size": 8, "width": 32, "depth": 3,
        "num_heads": 2, "latent_dim": 8, "normalize_latent": True, "num_registers": 2,
        "num_classes": 5, "teacher_dim": 12, "teacher_block": 0, "representation_head": True,
    }  # fmt: skip
    return DSDViTConfig.model_validate(values | changes)


def full_size(row):
    width, depth, num_heads = SIZES[row]
    with torch.device("meta"):
        return DSDViT(
            config(
                resolution=256, patch_size=16, width=width, depth=depth, num_heads=num_heads,
                latent_dim=16, num_registers=4, num_classes=1000, teacher_dim=768, teacher_block=1,
            )
        )  # fmt: skip


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("row", SIZES)
def test_each_module_has_its_share_of_the_papers_parameters(row):
    network = full_size(row)
    for name, (modules, millions) in BUDGET.items():
        found = sum(count(network.get_submodule(module)) for module in modules)
        expected = millions[list(SIZES).index(row)]
        assert found / 1e6 == pytest.approx(expected, abs=0.001), name
    predictor = count(network.representation_out)  # serves training alone: not in the paper's count
    assert predictor == 2 * SIZES[row][0] ** 2 + 2 * SIZES[row][0]
    assert count(network) - predictor == TOTALS[row]


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = DSDViT(config())
    for layer in (network.dit_layer, network.z0_out, network.velocity_out):
        torch.nn.init.normal_(layer.modulation.weight, std=0.1)  # as if trained: open the gates
    torch.nn.init.normal_(network.velocity_out.linear.weight, std=0.1)
    return network


def test_shapes_of_the_three_roles(network):
    x = torch.randn(2, 3, 32, 32)
    z = network.encode(x, torch.rand(2, 16) < 0.5)
    h, teacher = network.denoise(z)
    t, labels = torch.rand(2), torch.tensor([0, 5])
    assert z.shape == (2, 16, 8)
    assert h.shape == (2, 16, 32)
    assert teacher.shape == (2, 16, 12)
    assert network.predict_z0(h, t, labels).shape == z.shape
    assert network.predict_velocity(h, t, labels).shape == z.shape
    assert network.decode(h).shape == x.shape
    assert network.classify(z).shape == (2, 5)


def test_latents_have_mean_0_and_variance_1_per_token(network):
    z = network.encode(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(z.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(-1, correction=0), torch.ones(2, 16), atol=1e-3, rtol=0)
    assert torch.allclose(normalize_latent(z), z, atol=1e-4)


def test_a_masked_patch_has_no_influence(network):
    x, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True  # row 1, column 1 of the 4 x 4 patches
    other = x.clone()
    other[..., 8:16, 8:16] = torch.randn(3, 8, 8)
    assert torch.equal(network.encode(x, mask), network.encode(other, mask))
    assert not torch.allclose(network.encode(x), network.encode(other))


def test_only_the_head_is_told_time_and_class(network):
    z = torch.randn(1, 16, 8).expand(2, -1, -1)
    h, _ = network.denoise(z)
    assert torch.equal(h[0], h[1])
    one = network.predict_velocity(h, torch.tensor([0.5, 0.5]), torch.tensor([0, 1]))
    two = network.predict_velocity(h, torch.tensor([0.2, 0.8]), torch.tensor([0, 0]))
    assert not torch.allclose(one[0], one[1])
    assert not torch.allclose(two[0], two[1])


def test_a_fresh_velocity_head_predicts_nothing():
    torch.manual_seed(0)
    network = DSDViT(config())
    h, _ = network.denoise(torch.randn(1, 16, 8))
    assert not network.predict_velocity(h, torch.rand(1), torch.tensor([0])).any()


def test_rotations_make_attention_relative_to_position():
    """<R(a) q, R(b) k> of two patches depends on their offset only, along rows and columns."""
    angles = rotary_table(grid=5, head_dim=16).double()
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).double()

    def score(a, b):
        rotated = [
            rotate(vector, angles[place].cos(), angles[place].sin())
            for vector, place in ((q, a), (k, b))
        ]
        return float(rotated[0] @ rotated[1])

    assert score(0, 7) == pytest.approx(score(12, 19), rel=1e-5)  # one down, two right
    assert score(0, 7) != pytest.approx(score(0, 11), rel=1e-3)  # two down, one right


def test_muon_gets_hidden_matrices_and_nothing_else(network):
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(p)] for p in network.hidden_matrices()}
    assert all(p.ndim == 2 for p in network.hidden_matrices())
    # Three blocks (one DiT, with adaLN), time, two adaLN, the predictor of features.
    assert len(chosen) == 3 * 6 + 1 + 2 + 2 + 2
    kept = {"latent_in", "latent_out", "class_out", "teacher_out", "class_embedding", "registers"}
    assert not any(name.split(".")[0] in kept for name in chosen)
    assert not any(name.endswith("out.linear.weight") for name in chosen)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"patch_size": 7}, "patch_size"),
        ({"width": 30}, "num_heads"),
        ({"teacher_block": 2}, "teacher_block"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        config(**changes)
