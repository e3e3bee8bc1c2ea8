"""EDM's augmentation: what it does to images of which every place is known, and what it says."""

import math

import pytest
import torch
from torch import Tensor

from selfdistill.data.augment import Transformations, augment, augment_if, draw, transform
from selfdistill.data.augment_config import NUM_AUGMENT_LABELS, AugmentConfig
from selfdistill.draws import Draws

ALWAYS = AugmentConfig(probability=1.0)
SIZES = [(8, 8), (32, 32), (16, 24)]


def draws_of(num: int, first: int = 0) -> Draws:
    return Draws(0, torch.arange(first, first + num))


def noise(num: int, height: int = 16, width: int = 16) -> Tensor:
    return 2 * Draws(1, torch.arange(num)).uniform("images", 3, height, width) - 1


def doing(num: int = 1, **changes) -> Transformations:
    """One thing done to all images, and nothing else."""
    zero, pair = torch.zeros(num), torch.zeros(num, 2)
    nothing = Transformations(pair.bool(), zero, zero, zero, zero, pair)
    values = {
        key: torch.as_tensor(value).expand_as(getattr(nothing, key))
        for key, value in changes.items()
    }
    return nothing._replace(**values)


def scene(x: Tensor, y: Tensor, size: tuple[int, int]) -> Tensor:
    """A smooth image at places (H, W), pixels from the centre: its reflection goes on as it is."""
    height, width = size
    across = math.pi * (x / (width - 1) + 0.5)
    down = math.pi * (y / (height - 1) + 0.5)
    return 0.5 * across.cos() + 0.3 * down.cos() * (2 * across).cos() + 0.2 * (2 * down).cos()


def centred(size: tuple[int, int]) -> list[Tensor]:
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return [x.double(), y.double()]


@pytest.mark.parametrize("size", SIZES)
def test_an_image_moves_as_its_labels_say(size):
    """They tell where each pixel came from, but for the sign of a stretch, which they lack."""
    num = 64
    x, y = centred(size)
    images = scene(x, y, size).float().expand(num, 3, *size)
    config = AugmentConfig(probability=0.5)
    found, labels = augment(images, draws_of(num), "a", config)
    assert (labels != 0).any(dim=0).all()
    signs = draw(draws_of(num), "a", config).stretch.sign().tolist()
    compared = 0.0
    for image, told, sign in zip(found, labels.double().tolist(), signs, strict=True):
        x_flip, y_flip, scale, less_cos, sin, along, across, right, down = told
        px = x - 0.125 * size[1] * right  # undone from the last to the first
        py = y - 0.125 * size[0] * down
        norm = sign * math.hypot(along, across)
        cos_r, sin_r = (along / norm, -across / norm) if norm else (1.0, 0.0)  # y is down
        for factor, (ux, uy) in (
            (2 ** (-0.2 * norm), (cos_r, sin_r)),
            (2 ** (0.2 * norm), (-sin_r, cos_r)),
        ):
            inner = (factor - 1) * (px * ux + py * uy)
            px, py = px + inner * ux, py + inner * uy
        cos = 1 + less_cos
        px, py = cos * px - sin * py, sin * px + cos * py
        px, py = (place * 2 ** (-0.2 * scale) for place in (px, py))
        expected = scene(-px if x_flip else px, -py if y_flip else py, size)
        known = (px.abs() < 1.5 * size[1] - 6) & (py.abs() < 1.5 * size[0] - 6)  # not gray
        compared += float(known.double().mean()) / num
        assert ((image - expected).abs() * known).max() < 0.6 / min(
            size
        )  # sym6 is not quite symmetric
    assert compared > 0.75


def test_a_mirrored_image_is_mirrored_exactly_and_the_label_is_1():
    images = noise(32)
    config = AugmentConfig(probability=1e-9)  # half are mirrored nonetheless
    found, labels = augment(images, draws_of(32), "a", config)
    mirrored = labels[:, 0] == 1
    assert 8 < mirrored.sum() < 24
    assert torch.equal(found[mirrored], images[mirrored].flip(3))
    assert torch.equal(found[~mirrored], images[~mirrored])
    assert not labels[:, 1:].any()
    top_to_bottom = doing(32, flips=torch.tensor([False, True]))
    assert torch.equal(transform(images, top_to_bottom, config), images.flip(2))
    assert top_to_bottom.labels.tolist() == [[0, 1] + [0] * 7] * 32


def test_a_quarter_of_a_turn_is_rot90():
    x, y = centred((32, 32))
    image = scene(x, y, (32, 32)).float().expand(1, 3, 32, 32)
    drawn = doing(angle=math.pi / 2)
    found = transform(image, drawn, ALWAYS)
    torch.testing.assert_close(found, image.rot90(1, (2, 3)), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.labels[0, 3:5], torch.tensor([-1.0, 1.0]))


def test_whole_pixels_are_moved_exactly_and_reflected_at_the_border():
    images = noise(1)
    found = transform(images, doing(shift=torch.tensor([1.0, -1.5])), ALWAYS)  # 2 and -3 of 16
    torch.testing.assert_close(found[..., :-3, 2:], images[..., 3:, :-2], atol=2e-5, rtol=0)
    torch.testing.assert_close(found[..., :-3, 0], images[..., 3:, 2], atol=2e-5, rtol=0)
    torch.testing.assert_close(found[..., -1, 2:], images[..., -4, :-2], atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [*SIZES, (7, 9)])
def test_a_resampling_in_place_gives_the_image_back(size):
    """sym6 is orthogonal: whatever is doubled and halved again is what it was."""
    images = noise(4, *size)
    found = transform(images, doing(4, scale=1e-12), ALWAYS)
    assert not torch.equal(found, images)
    torch.testing.assert_close(found, images, atol=2e-5, rtol=0)


def test_strengths_are_the_rows():
    images = noise(1)
    twice = AugmentConfig(probability=1.0, translation_deviation=0.25)
    moved = transform(images, doing(shift=torch.tensor([0.5, 0.0])), twice)
    assert torch.equal(moved, transform(images, doing(shift=torch.tensor([1.0, 0.0])), ALWAYS))
    still = AugmentConfig(probability=1.0, scale_deviation=0.0, stretch_deviation=0.0)
    found = transform(images, doing(scale=1.0, stretch=1.0), still)
    torch.testing.assert_close(found, images, atol=2e-5, rtol=0)


def test_at_probability_0_nothing_is_done():
    images = noise(16)
    found, labels = augment(images, draws_of(16), "a", AugmentConfig(probability=0.0))
    assert torch.equal(found, images)
    assert torch.equal(labels, torch.zeros(16, NUM_AUGMENT_LABELS))
    assert augment_if(images, draws_of(16), "a", None) == (images, ())


def test_each_transformation_has_its_share_and_is_independent_of_the_others():
    num, p = 20_000, 0.3
    drawn = draw(draws_of(num), "a", AugmentConfig(probability=p))
    values = (drawn.scale, drawn.angle, drawn.stretch, drawn.shift[:, 0])
    done = torch.stack([*drawn.flips.T, *(value != 0 for value in values)]).double()
    shares = torch.tensor([0.5, p / 2, p, p, p, p]).double()
    spread = (shares * (1 - shares)).sqrt()
    assert ((done.mean(dim=1) - shares).abs() < 4 * spread / num**0.5).all()
    assert torch.equal(drawn.shift[:, 0] != 0, drawn.shift[:, 1] != 0)
    between = done.corrcoef() - torch.eye(6)
    assert between.abs().max() < 4.5 / num**0.5
    for normals in (drawn.scale, drawn.stretch, *drawn.shift.T):
        assert normals[normals != 0].std() == pytest.approx(1, abs=0.05)
    stretched = drawn.direction[drawn.stretch != 0]
    assert (stretched == 0).double().mean() == pytest.approx(0.5, abs=0.03)
    for angles in (stretched[stretched != 0], drawn.angle[drawn.angle != 0]):
        assert angles.abs().max() <= math.pi
        assert angles.std() == pytest.approx(math.pi / 3**0.5, abs=0.05)


@pytest.mark.parametrize("size", [(8, 8), (17, 9)])
def test_an_image_is_augmented_alike_in_any_batch(size):
    images, config = noise(12, *size), AugmentConfig(probability=0.5)
    found, labels = augment(images, draws_of(12), "a", config)
    parts = [
        augment(images[first : first + num], draws_of(num, first), "a", config)
        for first, num in ((0, 5), (5, 1), (6, 6))
    ]
    assert torch.equal(torch.cat([part for part, _ in parts]), found)
    assert torch.equal(torch.cat([told for _, told in parts]), labels)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match=r"6 x 9 pixels .* a side needs 7; take larger"):
        augment(noise(2, 6, 9), draws_of(2), "a", ALWAYS)


def test_another_name_is_another_augmentation():
    images = noise(8, 8, 8)
    one, again, other = (augment(images, draws_of(8), name, ALWAYS) for name in "aab")
    assert torch.equal(one[0], again[0])
    assert (one[1] != other[1])[:, [2, 3, 4, 7, 8]].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_is_rounded_to_tf32():
    precision = torch.get_float32_matmul_precision()
    images, config = noise(16, 32, 32), ALWAYS
    expected, labels = augment(images, draws_of(16), "a", config)
    torch.set_float32_matmul_precision("high")
    try:
        drawn = Draws(0, torch.arange(16, device="cuda"))
        with torch.autocast("cuda", torch.bfloat16):
            found, told = augment(images.cuda(), drawn, "a", config)
    finally:
        torch.set_float32_matmul_precision(precision)
    torch.testing.assert_close(told.cpu(), labels, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)
