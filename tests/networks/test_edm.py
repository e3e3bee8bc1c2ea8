"""EDM's and EDM2's networks: parity with the public ones, sizes, and what they promise."""

import math

import pytest
import torch
from torch import nn

from selfdistill.networks import edm2
from selfdistill.networks.denoiser import double, halve, precondition, resample_filter
from selfdistill.networks.edm import EDM, positions
from selfdistill.networks.edm2 import EDM2, mp_cat, mp_silu, mp_sum, normalize
from selfdistill.networks.edm_config import ADMConfig, DDPMppConfig, EDM2Config

CIFAR = {
    "latent_size": 32, "latent_channels": 3, "width": 128, "multipliers": [2, 2, 2],
    "num_blocks": 4, "attention_sides": [16], "num_classes": 10, "conditional": False,
    "dropout": 0.13, "augment_dim": 9, "name": "ddpmpp",
}  # fmt: skip
FFHQ = {
    **CIFAR, "latent_size": 64, "multipliers": [1, 2, 2, 2], "num_classes": 1, "dropout": 0.05
}  # fmt: skip
IMAGENET_64 = {
    "latent_size": 64, "latent_channels": 3, "width": 192, "multipliers": [1, 2, 3, 4],
    "num_blocks": 3, "attention_sides": [32, 16, 8], "num_classes": 1000, "conditional": True,
    "dropout": 0.1, "name": "adm",
}  # fmt: skip
EDM2_512 = {
    "latent_size": 64, "latent_channels": 4, "width": 128, "multipliers": [1, 2, 3, 4],
    "num_blocks": 3, "attention_sides": [16, 8], "num_classes": 1000, "conditional": True,
    "dropout": 0.0, "logvar_channels": 128, "name": "edm2",
}  # fmt: skip


def build(values):
    kinds = {"ddpmpp": (EDM, DDPMppConfig), "adm": (EDM, ADMConfig), "edm2": (EDM2, EDM2Config)}
    network, config = kinds[values["name"]]
    return network(config.model_validate(values))


@pytest.mark.parametrize("name", ["edm_songunet", "edm_dhariwal", "edm2"])
def test_outputs_and_logits_are_those_of_the_public_network(name, edm_golden):
    network, of = edm_golden(name)
    given = of["x"], of["sigma"], of["labels_onehot"].argmax(dim=1), of.get("augment_labels")
    with torch.no_grad():
        clean, logits = network.denoise_and_judge(*given)
        assert torch.equal(network.judge(*given), logits)
        assert torch.equal(network(*given), clean)
    assert (clean - of["out"]).abs().max() <= 1e-5
    assert (logits - of["map"]).abs().max() <= 1e-5
    if name == "edm2":
        assert (network.log_variance(of["sigma"]) - of["logvar"]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("values", "num_parameters", "num_keys"),
    [
        (CIFAR, 55_733_891, 425),
        ({**CIFAR, "conditional": True}, 55_735_299, 427),
        (FFHQ, 61_805_571, 553),
        (IMAGENET_64, 295_899_267, 553),
        *(
            ({**EDM2_512, "width": width}, num, 203)
            for width, num in [
                (128, 124_713_253), (192, 280_212_837), (256, 497_807_781), (320, 777_498_085),
                (384, 1_119_283_749), (448, 1_523_164_773),
            ]
        ),
        ({**EDM2_512, "logvar_channels": 0}, 124_713_253 - 128, 200),
    ],
)  # fmt: skip
def test_published_networks_have_their_size(values, num_parameters, num_keys):
    with torch.device("meta"):
        network = build(values)
    assert sum(p.numel() for p in network.parameters()) == num_parameters
    assert len(network.state_dict()) == num_keys


def test_the_preconditioning_has_the_constants_of_one_step():
    scales = precondition(torch.tensor([2.5]))
    expected = [0.03846, 0.49029, 0.39223, 0.22907]
    assert [float(scale) for scale in scales] == pytest.approx(expected, abs=1e-5)


def test_without_classes_labels_do_not_matter_and_the_null_class_is_no_class():
    torch.manual_seed(0)
    small = {**CIFAR, "latent_size": 8, "width": 16, "multipliers": [1, 1], "num_blocks": 1}
    small |= {"attention_sides": [8], "dropout": 0.0}
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 2.0]), torch.tensor([1, 3])
    free, told = build(small), build({**small, "conditional": True})
    for network in (free, told):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        assert torch.equal(free(x, sigma, labels), free(x, sigma, labels.flip(0)))
        assert not torch.allclose(told(x, sigma, labels), told(x, sigma, labels.flip(0)))
        none = told(x, sigma, torch.full((2,), told.null_class))
        told.model.map_label.weight.zero_()
        torch.testing.assert_close(none, told(x, sigma, labels))


def test_logits_reach_the_encoder_alone():
    torch.manual_seed(0)
    small = {**EDM2_512, "latent_size": 8, "width": 64, "multipliers": [1, 1], "num_blocks": 1}
    for values in (small, {**small, "name": "adm", "dropout": 0.0}):
        if values["name"] == "adm":
            del values["logvar_channels"]
        network = build(values)
        x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 2.0])
        network.judge(x, sigma, torch.tensor([1, 3])).sum().backward()
        moved = {name for name, p in network.named_parameters() if p.grad is not None}
        assert any(".enc." in name for name in moved)
        assert not any(".dec." in name or "out_" in name for name in moved)


@pytest.mark.parametrize("values", [CIFAR, IMAGENET_64])
def test_as_initialised_edm_returns_next_to_what_is_skipped(values):
    torch.manual_seed(0)
    small = {**values, "latent_size": 8, "width": 64, "multipliers": [1, 2], "num_blocks": 1}
    network = build({**small, "attention_sides": [4]}).eval()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 2.0])
    skip = precondition(sigma).skip.view(-1, 1, 1, 1) * x
    with torch.no_grad():
        clean = network(x, sigma, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(clean, skip, atol=1e-4, rtol=0)


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="latent_size 20 cannot be halved 3 times"):
        build({**FFHQ, "latent_size": 20})


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="width 96: levels that attend have heads of 64"):
        build({**IMAGENET_64, "width": 96, "multipliers": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match="width 40: levels that attend have heads of 64"):
        build({**EDM2_512, "width": 40})


def test_resampling_is_a_mean_and_a_repetition():
    x, filter_ = torch.randn(2, 3, 4, 4), resample_filter()
    torch.testing.assert_close(halve(x, filter_), torch.nn.functional.avg_pool2d(x, 2))
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(double(x, filter_), repeated)


def test_positions_have_one_and_a_ten_thousandth():
    sines = positions(torch.tensor([1.0]), 8, both_ends=True)[0, 4:]
    assert sines[0] == pytest.approx(math.sin(1))
    assert sines[-1] == pytest.approx(math.sin(1e-4))
    assert positions(torch.tensor([1.0]), 8, both_ends=False)[0, 7] > sines[-1]


class TestMagnitudes:
    def test_sums_and_joins_keep_them(self):
        torch.manual_seed(0)
        a, b = torch.randn(4, 64, 32, 32), torch.randn(4, 192, 32, 32)
        assert mp_sum(a, b[:, :64], 0.3).std() == pytest.approx(1, abs=0.01)
        joined = mp_cat(a, b, 0.5)
        assert joined.square().mean() == pytest.approx(1, abs=0.01)
        of_a, of_b = (part.square().sum() for part in joined.split((64, 192), dim=1))
        assert of_a / of_b == pytest.approx(1, abs=0.02)  # equal shares, whatever their channels
        assert mp_silu(a).square().mean() == pytest.approx(1, abs=0.01)

    def test_normalised_vectors_have_a_root_mean_square_of_one(self):
        x = 7 * torch.randn(5, 6, 3, 3, generator=torch.Generator().manual_seed(0))
        for dims in ((1,), (1, 2, 3)):
            rms = normalize(x, dims).square().mean(dim=dims).sqrt()
            torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-3, rtol=0)

    def test_weights_brought_back_to_their_norm_compute_the_same(self):
        torch.manual_seed(0)
        small = {**EDM2_512, "latent_size": 8, "width": 64, "multipliers": [1, 2], "num_blocks": 1}
        network = build({**small, "attention_sides": [4]}).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, mean=0.1, std=3.0 if parameter.ndim > 1 else 0.1)
        given = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 2.0]), torch.tensor([1, 3])
        with torch.no_grad():
            before = network(*given)
            network.normalize_weights()
            torch.testing.assert_close(network(*given), before, atol=5e-3, rtol=5e-3)
            weight = network.unet.emb_noise.weight
            assert weight.square().mean(dim=1).sqrt() == pytest.approx(1, abs=1e-3)

    def test_a_generator_has_no_log_variance(self):
        small = {**EDM2_512, "latent_size": 8, "width": 64, "multipliers": [1], "num_blocks": 1}
        with pytest.raises(ValueError, match="no log-variance: give it logvar_channels"):
            build({**small, "logvar_channels": 0}).log_variance(torch.ones(1))


def attended_slowly(qkv, num_heads, *, pixel_norm):
    """Attend place by place: rows of qkv are ordered by head, channel, and queries, keys, values.

    The goldens' networks have one head, or none; the large ones have up to twenty-eight.
    """
    images, rows, height, width = qkv.shape
    channels = rows // 3 // num_heads
    found = torch.empty(images, rows // 3, height * width)
    for n in range(images):
        for head in range(num_heads):
            first = 3 * channels * head
            q, k, v = (
                torch.stack([qkv[n, first + 3 * c + kind].flatten() for c in range(channels)])
                for kind in range(3)
            )
            if pixel_norm:
                norms = [(1e-4 + one.square().mean(dim=0).sqrt()) for one in (q, k, v)]
                q, k, v = (one / norm for one, norm in zip((q, k, v), norms, strict=True))
            weights = torch.softmax(torch.einsum("cl,cm->lm", q, k) / math.sqrt(channels), dim=1)
            place = slice(channels * head, channels * (head + 1))
            found[n, place] = torch.einsum("lm,cm->cl", weights, v)
    return found.view(images, -1, height, width)


@pytest.mark.parametrize("encodes", [True, False])
def test_edm2s_heads_attend_to_normalised_places(encodes):
    torch.manual_seed(0)
    block = edm2.Block(128, 128, 16, 0.0, encodes=encodes, attends=True).eval()
    nn.init.ones_(block.emb_gain)
    assert block.num_heads == 2
    x, embedding = torch.randn(2, 128, 4, 3), torch.randn(2, 16)
    with torch.no_grad():
        found = block(x, embedding)
        block.num_heads = 0  # nothing attends: what it attends to
        before = block(x, embedding)
        weight = block.attn_qkv.weight.flatten(1)
        qkv = torch.einsum("oc,nchw->nohw", weight / weight.norm(dim=1, keepdim=True), before)
        weight = block.attn_proj.weight.flatten(1)
        attended = attended_slowly(qkv, 2, pixel_norm=True)
        branch = torch.einsum("oc,nchw->nohw", weight / weight.norm(dim=1, keepdim=True), attended)
    expected = (0.7 * before + 0.3 * branch) / math.sqrt(0.7**2 + 0.3**2)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (found - before).abs().max() > 0.1


@pytest.mark.parametrize(("name", "num_heads"), [("adm", 2), ("ddpmpp", 1)])
def test_edms_heads_attend_to_all_places(name, num_heads):
    torch.manual_seed(0)
    values = IMAGENET_64 if name == "adm" else CIFAR
    small = {"latent_size": 8, "width": 128, "multipliers": [1], "num_blocks": 1, "num_classes": 2}
    network = build({**values, **small, "attention_sides": [8], "dropout": 0.0}).eval()
    block = network.model.enc["8x8_block0"]
    assert block.num_heads == num_heads
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, embedding = torch.randn(2, 128, 4, 3), torch.randn(2, block.affine.in_features)
    with torch.no_grad():
        found = block(x, embedding)
        block.attends = False
        before = block(x, embedding)
        qkv = block.qkv(block.norm2(before))
        branch = block.proj(attended_slowly(qkv, num_heads, pixel_norm=False))
    scale = 1.0 if name == "adm" else math.sqrt(0.5)
    torch.testing.assert_close(found, scale * (before + branch), atol=1e-3, rtol=1e-3)
    assert (branch).abs().max() > 0.1
