from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from selfdistill.networks.dinov2 import ARCHITECTURE, Dinov2, load_dinov2, resize_pil, resize_torch

SMALL = "vit_small_patch14_dinov2"
SIZES = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def meta_weights() -> dict[str, Tensor]:
    """A small network in the layout of Meta's files: 518 pixels, and a mask token."""
    generator = torch.Generator().manual_seed(0)
    vit = timm.create_model(SMALL, num_classes=0, **SIZES)
    weights = {
        key: value + 0.2 * torch.randn(value.shape, generator=generator)
        for key, value in vit.state_dict().items()
    }
    assert weights["pos_embed"].shape == (1, 1370, 64)
    return weights | {"mask_token": torch.zeros(1, 64)}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return meta_weights()


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def network(path) -> Dinov2:
    return load_dinov2(path, SMALL, **SIZES)


def pixels(num: int = 2) -> Tensor:
    return torch.rand(num, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 255


def photos(num: int, height: int, width: int) -> Tensor:
    """Smooth colours, uint8 (N, H, W, 3)."""
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(num)) * 255
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return smooth.round().byte().permute(0, 2, 3, 1).contiguous()


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(weights: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(weights, f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return linear(weights, f"{name}.proj", (shares @ v).transpose(1, 2).flatten(2))


def positions(weights: dict[str, Tensor]) -> Tensor:
    """At 224 pixels, as Meta's network interpolates them."""
    grid = weights["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    scale = (16 + 0.1) / 37
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    assert grid.shape[2:] == (16, 16)
    return torch.cat([weights["pos_embed"][:, :1], grid.flatten(2).mT], dim=1)


def class_token(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network in its formulas."""
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    x = (x / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = F.conv2d(x, kernel, bias, stride=14).flatten(2).mT
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + positions(weights)
    for i in range(SIZES["depth"]):
        block = f"blocks.{i}"
        y = attention(weights, f"{block}.attn", norm(weights, f"{block}.norm1", x), 2)
        x = x + weights[f"{block}.ls1.gamma"] * y
        y = linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x))
        x = x + weights[f"{block}.ls2.gamma"] * linear(weights, f"{block}.mlp.fc2", F.gelu(y))
    return norm(weights, "norm", x)[:, 0]


def test_features_are_the_class_token_of_the_formulas(network, weights):
    features = network(pixels())
    assert features.shape == (2, 64)
    torch.testing.assert_close(features, class_token(weights, pixels()), rtol=1e-4, atol=1e-5)


def test_positions_are_metas_and_not_timms(network, weights):
    ours = network.vit.pos_embed
    assert torch.equal(ours, positions(weights))
    timms = resample_abs_pos_embed(weights["pos_embed"], new_size=[16, 16])
    assert (ours - timms).square().mean().sqrt() > 0.1 * timms.std()
    other = load_other_positions(network, timms)
    assert not torch.allclose(network(pixels()), other(pixels()), atol=1e-2)


def load_other_positions(network: Dinov2, values: Tensor) -> Dinov2:
    vit = timm.create_model(SMALL, num_classes=0, img_size=224, **SIZES)
    vit.load_state_dict(network.vit.state_dict() | {"pos_embed": values})
    return Dinov2(vit).eval()


def test_positions_that_fit_stay_as_they_are(weights, tmp_path):
    fitting = weights | {"pos_embed": torch.randn(1, 257, 64)}
    torch.save(fitting, tmp_path / "fitting.pth")
    vit = load_dinov2(tmp_path / "fitting.pth", SMALL, **SIZES).vit
    assert torch.equal(vit.pos_embed, fitting["pos_embed"])


def test_safetensors_of_timm_are_the_same_network(network, weights, tmp_path):
    timms = {key: value for key, value in weights.items() if key != "mask_token"}
    safetensors.torch.save_file(timms, tmp_path / "model.safetensors")
    before = torch.random.get_rng_state()
    other = load_dinov2(tmp_path / "model.safetensors", SMALL, **SIZES)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(network(pixels()), other(pixels()))
    assert not other.training
    assert not any(p.requires_grad for p in other.parameters())


def test_the_default_is_metas_vit_l():
    with torch.device("meta"):
        vit = timm.create_model(ARCHITECTURE, num_classes=0)
    assert vit.pos_embed.shape == (1, 1370, 1024)
    mask_token = 1024
    assert sum(p.numel() for p in vit.parameters()) + mask_token == 304_368_640


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"register_tokens": torch.zeros(1, 4, 64)}, "unexpected: register_tokens"),
        ({"norm.weight": None}, "missing: norm.weight"),
        ({"pos_embed": None}, "missing: pos_embed"),
        ({"cls_token": torch.zeros(1, 1, 32)}, "of another shape: cls_token"),
        ({"pos_embed": torch.zeros(1, 1371, 64)}, r"pos_embed \[1, 1371, 64\] is no square"),
        ({"pos_embed": torch.zeros(5)}, r"pos_embed \[5\] is no square"),
    ],
)
def test_other_layouts_are_refused_by_name(weights, tmp_path, changes, message):
    changed = {key: value for key, value in (weights | changes).items() if value is not None}
    torch.save(changed, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth.*{message}"):
        load_dinov2(tmp_path / "other.pth", SMALL, **SIZES)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"damage")
    with pytest.raises(ValueError, match=r"damaged\.pth"):
        load_dinov2(tmp_path / "damaged.pth", SMALL, **SIZES)
    torch.save({"weights": Path}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match=r"pickle\.pth"):
        load_dinov2(tmp_path / "pickle.pth", SMALL, **SIZES)


def test_other_sizes_of_images_are_refused(network):
    with pytest.raises(ValueError, match=r"\(N, 3, 224, 224\).*\[1, 3, 256, 256\]"):
        network(torch.zeros(1, 3, 256, 256))


@pytest.mark.parametrize(("height", "width"), [(256, 256), (32, 32), (300, 200), (224, 224)])
def test_resize_pil_is_pillows_one_by_one(height, width):
    images = photos(3, height, width)
    resized = resize_pil(images)
    assert resized.shape == (3, 3, 224, 224)
    assert resized.dtype == torch.float32
    for image, result in zip(images, resized, strict=True):
        expected = Image.fromarray(image.numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        assert np.array_equal(result.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_the_two_resizes_are_close_but_differ():
    images = photos(2, 256, 256)
    one, two = resize_torch(images), resize_pil(images)
    assert one.shape == two.shape == (2, 3, 224, 224)
    assert one.dtype == torch.float32
    assert 0 < (one - two).abs().max() < 2  # grey levels: Pillow rounds twice
    assert (one - two).abs().mean() < 0.5
