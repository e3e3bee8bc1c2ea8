import pytest
import torch

from selfdistill.networks.config import TeacherConfig
from selfdistill.networks.dinov3 import Teacher

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
