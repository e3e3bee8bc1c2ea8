import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.metrics.tiny import TinyExtractor

TINY_SHA256 = "9a98c8c2f0fb3b7c52b0035f3d4d33336be14dcb87fcdd39ddf416b1ded84cd6"


def features_of(images: np.ndarray) -> torch.Tensor:
    return TinyExtractor()(images, ("filters",))["filters"]


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    grey = (load_digits().images[:600] * (255 / 16)).astype(np.uint8)
    return np.repeat(np.kron(grey, np.ones((1, 4, 4), np.uint8))[..., None], 3, axis=-1)


def moments(images: np.ndarray) -> Moments:
    running = RunningMoments()
    for start in range(0, len(images), 100):
        running.update(features_of(images[start : start + 100]))
    return running.finish()


def test_weights_are_the_same_on_every_machine():
    assert TinyExtractor().weights_sha256 == TINY_SHA256


def test_features_have_their_golden_values():
    ramp = (np.arange(32 * 32 * 3) % 256).reshape(1, 32, 32, 3).astype(np.uint8)
    features = features_of(ramp)
    assert features.shape == (1, 64)
    assert features.dtype == torch.float64
    golden = [3.867222790, 5.485695008, 1.816033279, 2.407128646]
    assert features[0, [0, 16, 32, 63]].tolist() == pytest.approx(golden, abs=1e-8)


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (2, 17, 40, 3), (1, 64, 64, 3)])
def test_images_of_any_size_have_64_finite_features(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    features = features_of(images)
    assert features.shape == (shape[0], 64)
    assert features.isfinite().all()


def test_a_feature_does_not_depend_on_the_batch(digits):
    together, alone = features_of(digits[:5]), features_of(digits[3:4])
    torch.testing.assert_close(together[3:4], alone, rtol=1e-12, atol=1e-12)


def test_an_image_of_twice_the_size_has_the_same_features(digits):
    larger = digits[:4].repeat(2, axis=1).repeat(2, axis=2)
    torch.testing.assert_close(features_of(larger), features_of(digits[:4]))


def test_distance_grows_from_real_to_damaged_to_noise(digits):
    rng = np.random.default_rng(0)
    reference = moments(digits[::2])

    def damaged(strength: float) -> np.ndarray:
        noisy = digits[1::2] + strength * rng.standard_normal(digits[1::2].shape)
        return noisy.clip(0, 255).astype(np.uint8)

    noise = rng.integers(0, 256, digits[1::2].shape, dtype=np.uint8)
    candidates = [digits[1::2], damaged(20), damaged(80), noise]
    distances = [frechet_distance(moments(images), reference) for images in candidates]
    assert distances == sorted(distances)
    assert distances[-1] > 100 * distances[0]


def test_images_that_are_not_uint8_rgb_are_refused():
    with pytest.raises(ValueError, match=r"uint8 \(N, H, W, 3\), got float32 \[1, 3, 8, 8\]"):
        features_of(np.zeros((1, 3, 8, 8), np.float32))
