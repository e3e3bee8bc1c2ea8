import json

import numpy as np
import pytest
from sklearn.datasets import load_digits

from selfdistill.metrics.class_accuracy import RealClassifier, thumbnails


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    grey = (digits.images * (255 / 16)).astype(np.uint8)
    return thumbnails(np.repeat(grey[..., None], 3, axis=-1)), digits.target


@pytest.fixture(scope="module")
def classifier(real: tuple[np.ndarray, np.ndarray]) -> RealClassifier:
    return RealClassifier.fit(*real)


def test_thumbnails_are_grey_averages_in_0_1():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1, :2, :2, 0] = 255
    small = thumbnails(images)
    assert small.shape == (2, 256)
    assert small[1, 0] == pytest.approx(1 / 3)
    assert small.sum() == pytest.approx(1 / 3)


def test_held_out_digits_are_told_apart(classifier):
    assert classifier.held_out_accuracy > 0.97


def test_real_images_score_like_held_out_ones_or_better(classifier, real):
    images, labels = real
    assert classifier.held_out_accuracy <= classifier.accuracy(images, labels) <= 1


def test_random_labels_score_one_in_ten(classifier, real):
    images, labels = real
    shuffled = np.random.default_rng(0).permutation(labels)
    assert classifier.accuracy(images, shuffled) == pytest.approx(0.1, abs=0.03)


def test_noise_scores_no_better_than_chance(classifier):
    noise = np.random.default_rng(0).random((500, 256))
    assert classifier.accuracy(noise, np.arange(500) % 10) == pytest.approx(0.1, abs=0.03)


def test_the_fit_is_deterministic(classifier, real):
    images, labels = real
    again = RealClassifier.fit(images, labels)
    assert again.held_out_accuracy == classifier.held_out_accuracy
    assert again.accuracy(1 - images, labels) == classifier.accuracy(1 - images, labels)


def test_fitted_and_held_out_images_are_all_the_real_ones(classifier, real):
    assert classifier.num_fitted + classifier.num_held_out == len(real[0])
    json.dumps(classifier.protocol())


def test_a_class_too_small_to_split_is_refused(real):
    images, _ = real
    with pytest.raises(ValueError, match="four real images of each class or more, one has 1"):
        RealClassifier.fit(images[:9], np.array([0] * 8 + [1]))
