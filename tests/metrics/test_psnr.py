import numpy as np
import pytest

from selfdistill.metrics.psnr import psnr


@pytest.mark.parametrize("levels", [1, 2, 16, 255])
def test_a_constant_difference_has_its_closed_form(levels):
    a = np.random.default_rng(0).integers(0, 256 - levels, (3, 8, 6, 3), dtype=np.uint8)
    b = a + np.uint8(levels)
    expected = np.full(3, 20 * np.log10(255 / levels))
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(psnr(b, a), psnr(a, b))


def test_one_wrong_pixel_has_its_closed_form():
    a = np.zeros((2, 10, 10, 1), np.uint8)
    b = a.copy()
    b[0, 3, 4] = 255
    b[1, 3, 4] = 51
    np.testing.assert_allclose(psnr(a, b), [20, 20 + 20 * np.log10(5)])


def test_each_image_has_its_own_value():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    alone = [psnr(a[i : i + 1], b[i : i + 1])[0] for i in range(5)]
    mse = np.square(a.astype(float) - b).mean((1, 2, 3))
    np.testing.assert_array_equal(psnr(a, b), alone)
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(255**2 / mse), rtol=1e-14)


def test_equal_images_are_infinite_and_so_is_their_mean():
    a = np.full((2, 4, 4, 3), 7, np.uint8)
    b = a.copy()
    b[1] = 8
    values = psnr(a, b)
    assert values[0] == np.inf
    assert np.isfinite(values[1])
    assert values.mean() == np.inf


def test_what_is_not_uint8_pairs_is_refused():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for other in (images[:1], images.astype(np.float32), images[:, :2]):
        with pytest.raises(ValueError, match="must be uint8"):
            psnr(images, other)
    with pytest.raises(ValueError, match="must be uint8"):
        psnr(images[0], images[0])
