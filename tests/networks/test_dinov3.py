import pytest
import timm
import torch

from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.teacher_config import TeacherConfig

TINY = {
    "architecture": "vit_small_patch16_dinov3",
    "weights": "random",
    "overrides": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "seed": 0,
    "patch_size": 8,
    "dim": 32,
    "batch_size": 4,
    "cache": {"mirrored": True, "dtype": "float16"},
}


def teacher(**changes):
    return Teacher(TeacherConfig.model_validate(TINY | changes), 32)


def test_random_weights_are_fixed_by_their_seed_and_leave_the_global_state_alone():
    x = torch.rand(2, 3, 32, 32) * 255
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = teacher(), teacher(), teacher(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one(x), two(x))
    assert not torch.allclose(one(x), other(x))


def test_tokens_are_patches_only_and_normalised():
    tokens = teacher()(torch.rand(3, 3, 32, 32) * 255)
    assert tokens.shape == (3, 16, 32)  # no class token, no registers
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(3, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std(-1), torch.ones(3, 16), atol=0.1, rtol=0)


def test_weights_from_a_file_are_the_same_teacher(tmp_path):
    one = teacher()
    torch.save(one.vit.state_dict(), tmp_path / "weights.pth")
    two = teacher(weights=str(tmp_path / "weights.pth"), seed=9)
    x = torch.rand(1, 3, 32, 32) * 255
    assert torch.equal(one(x), two(x))
    assert one.digest() == two.digest() != teacher(seed=1).digest()


def test_missing_weights_and_wrong_width_are_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        teacher(weights="nowhere.safetensors")
    with pytest.raises(ValueError, match=r"16 tokens of width 32 .* say 16 of 48"):
        teacher(dim=48)


@pytest.mark.parametrize(
    ("architecture", "patch_size", "resolution"),
    [
        ("vit_tiny_patch16_224", 16, None),
        ("deit_tiny_distilled_patch16_224", 16, None),  # two prefix tokens
        ("vit_small_patch16_dinov3", 16, None),
        ("vit_small_patch14_reg4_dinov2", 14, 56),  # no multiple of 14 divides 64
        ("vit_base_patch16_clip_224", 16, 128),
        ("beit_base_patch16_224", 16, None),
        ("eva02_tiny_patch14_224", 14, 56),
    ],
)
def test_any_vit_of_timm_is_a_teacher(architecture, patch_size, resolution):
    width = timm.create_model(architecture, depth=1).embed_dim
    config = TeacherConfig.model_validate(
        TINY
        | {
            "architecture": architecture, "overrides": {"depth": 1}, "patch_size": patch_size,
            "dim": width, "resolution": resolution,
        }
    )  # fmt: skip
    one = Teacher(config, 64)
    x = torch.rand(2, 3, 64, 64) * 255
    tokens = one(x)
    assert tokens.shape == (2, config.grid(64) ** 2, width) == (2, *one.shape)
    expects = timm.get_pretrained_cfg(architecture)
    assert one.mean.flatten().tolist() == pytest.approx(expects.mean)
    assert one.std.flatten().tolist() == pytest.approx(expects.std)


def test_position_tables_of_a_file_are_fitted_to_the_image_and_its_classifier_is_left_out(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    torch.save(vit.state_dict(), tmp_path / "weights.pth")
    changes = {
        "architecture": "vit_tiny_patch16_224", "weights": str(tmp_path / "weights.pth"),
        "overrides": {"depth": 1}, "patch_size": 16, "dim": 192,
    }  # fmt: skip
    small = teacher(**changes)
    assert small.shape == (4, 192)
    large = Teacher(TeacherConfig.model_validate(TINY | changes), 224)
    x = torch.rand(1, 3, 224, 224) * 255
    normalised = (x / 255 - large.mean) / large.std
    with torch.no_grad():
        expected = vit.eval().forward_features(normalised)[:, 1:]
    torch.testing.assert_close(large(x), expected)


def test_another_networks_file_is_refused_and_named(tmp_path):
    file = tmp_path / "other.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1).state_dict(), file)
    with pytest.raises(ValueError, match=r"other\.pth: not the weights of timm's vit_small"):
        teacher(weights=str(file))


def test_weights_that_hash_to_something_else_are_refused():
    digest = teacher().digest()
    assert teacher(weights_sha256=digest).digest() == digest
    with pytest.raises(ValueError, match=f"others than its weights_sha256 says: .*{digest}"):
        teacher(weights_sha256="0" * 64)
