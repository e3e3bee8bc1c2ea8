import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from selfdistill.data.shards import Shards, ShardWriter, finalize
from selfdistill.metrics.class_accuracy import thumbnails
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.metrics.extractors import TinyExtractor
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.pipelines.evaluate.nodes import describe_reference, evaluate_samples

CONFIG = EvaluationConfig(extractor="tiny", metrics=("fd_tiny", "class_accuracy"), batch_size=100)
ABOUT = {"quantisation": "floor(clip(127.5 x + 128, 0, 255))", "nfe": 50}


def shards_of(
    directory: Path, images: np.ndarray, labels: np.ndarray, about: dict[str, Any] | None = None
) -> Shards:
    with ShardWriter(directory, 0, images.shape[1:], "uint8") as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.append(f"{number:05d}", int(label), image)
    names = [str(digit) for digit in range(10)]
    return finalize(
        directory,
        num_shards=1,
        shape=images.shape[1:],
        dtype="uint8",
        class_names=names,
        about=about,
    )


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    source = load_digits()
    grey = (source.images * (255 / 16)).astype(np.uint8)
    return np.repeat(np.kron(grey, np.ones((1, 2, 2), np.uint8))[..., None], 3, -1), source.target


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory) -> Shards:
    """Real images; the last 300 digits are kept for the samples."""
    pixels, labels = digits
    return shards_of(tmp_path_factory.mktemp("images") / "set", pixels[:-300], labels[:-300])


@pytest.fixture(scope="module")
def reference(images) -> dict[str, Any]:
    return describe_reference(images, CONFIG)


@pytest.fixture
def sampled(tmp_path, images, reference):
    """Evaluate pixels as if a network had generated them."""

    def evaluate(pixels: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        samples = shards_of(tmp_path / "samples", pixels, labels, ABOUT)
        return evaluate_samples(samples, images, reference, CONFIG)

    return evaluate


def test_the_reference_holds_the_moments_of_all_images(images, reference):
    running = RunningMoments()
    running.update(TinyExtractor()(images.read(np.arange(len(images)))))
    exact = running.finish()
    np.testing.assert_allclose(reference["mu"], exact.mu, rtol=1e-10)
    np.testing.assert_allclose(reference["sigma"], exact.sigma, rtol=1e-8, atol=1e-10)
    assert reference["num_images"] == len(images)


def test_the_reference_is_arrays_that_an_npz_holds_without_pickle(reference):
    assert all(isinstance(value, np.ndarray) for value in reference.values())
    assert all(value.dtype.kind in "fiU" for value in reference.values())


def test_the_reference_does_not_depend_on_the_batch_size(images, reference):
    other = describe_reference(images, CONFIG.model_copy(update={"batch_size": 64}))
    for name in ("mu", "sigma", "frechet_noise", "frechet_real_halves"):
        np.testing.assert_allclose(other[name], reference[name], rtol=1e-7, atol=1e-9)


def test_real_halves_are_near_and_noise_is_far(reference):
    assert 0 < reference["frechet_real_halves"] < 0.2
    assert reference["frechet_noise"] > 500 * reference["frechet_real_halves"]


def test_unseen_real_images_score_far_better_than_noise(sampled, digits):
    pixels, labels = digits
    result = sampled(pixels[-300:], labels[-300:])
    assert result["metrics"]["fd_tiny"] < 0.02 * result["baselines"]["fd_tiny"]["noise"]
    assert result["metrics"]["class_accuracy"] > 0.9
    assert result["baselines"]["class_accuracy"]["real"] > 0.97


def test_noise_scores_as_its_baseline_and_its_class_is_a_guess(sampled, reference):
    eps = np.random.default_rng(7).standard_normal((300, 16, 16, 3)).clip(-1, 1)
    result = sampled((127.5 * eps + 128).clip(0, 255).astype(np.uint8), np.arange(300) % 10)
    noise = float(reference["frechet_noise"])
    assert result["metrics"]["fd_tiny"] == pytest.approx(noise, rel=0.02)
    assert result["baselines"]["fd_tiny"]["noise"] == pytest.approx(noise, rel=1e-9)
    assert result["metrics"]["class_accuracy"] < 0.2


def test_the_distance_is_that_of_the_samples_features(sampled, digits, reference):
    pixels, labels = digits
    running = RunningMoments()
    running.update(TinyExtractor()(pixels[:50]))
    real = Moments(torch.from_numpy(reference["mu"]), torch.from_numpy(reference["sigma"]), 0)
    expected = frechet_distance(running.finish(), real)
    value = sampled(pixels[:50], labels[:50])["metrics"]["fd_tiny"]
    assert value == pytest.approx(expected, rel=1e-7)


def test_the_classifier_sees_real_images_only(sampled, digits, images, monkeypatch):
    seen: list[np.ndarray] = []
    fit = SVC.fit

    def spy(self: SVC, X: np.ndarray, y: np.ndarray) -> SVC:
        seen.append(X)
        return fit(self, X, y)

    monkeypatch.setattr(SVC, "fit", spy)
    pixels, labels = digits
    sampled(255 - pixels[-300:], labels[-300:])
    real = {row.tobytes() for row in thumbnails(images.read(np.arange(len(images))))}
    assert len(seen) == 1
    assert all(row.tobytes() in real for row in seen[0])


def test_the_result_is_json_and_carries_its_protocol(sampled, digits, images):
    pixels, labels = digits
    result = sampled(pixels[-300:], labels[-300:])
    assert json.loads(json.dumps(result)) == result
    assert result["metrics"].keys() == {"fd_tiny", "class_accuracy"}
    assert result["baselines"].keys() == {"fd_tiny", "class_accuracy"}
    protocol = result["protocol"]
    assert protocol["extractor"] == "tiny"
    assert protocol["weights_sha256"] == TinyExtractor().weights_sha256
    assert protocol["quantisation"] == ABOUT["quantisation"]
    assert protocol["num_samples"] == 300
    assert protocol["num_reference"] == len(images)
    assert protocol["reference"] == images.fingerprint
    assert protocol["samples"] == ABOUT
    assert protocol["versions"].keys() == {"torch", "numpy", "scikit-learn", "selfdistill"}


def test_the_same_samples_give_the_same_bytes(sampled, digits, tmp_path, images, reference):
    pixels, labels = digits
    first = sampled(pixels[-300:], labels[-300:])
    again = evaluate_samples(Shards.open(tmp_path / "samples"), images, reference, CONFIG)
    assert json.dumps(first) == json.dumps(again)


def test_only_the_metrics_asked_for_are_measured(digits, tmp_path, images, reference):
    pixels, labels = digits
    samples = shards_of(tmp_path / "samples", pixels[:50], labels[:50])
    only = EvaluationConfig(extractor="tiny", metrics=("fd_tiny",))
    result = evaluate_samples(samples, images, reference, only)
    assert result["metrics"].keys() == {"fd_tiny"}
    assert result["baselines"].keys() == {"fd_tiny"}
    assert result["baselines"]["fd_tiny"].keys() == {"noise", "real_halves"}
    assert result["protocol"]["quantisation"] == "not recorded by the sampler"


def test_a_reference_of_other_images_is_refused(digits, tmp_path, images, reference):
    pixels, labels = digits
    other = shards_of(tmp_path / "other", pixels[:100], labels[:100])
    with pytest.raises(ValueError, match=r"other images.*run the node describe_reference again"):
        evaluate_samples(images, other, reference, CONFIG)


def test_samples_of_another_size_are_refused(tmp_path, images, reference):
    small = shards_of(tmp_path / "small", np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9))
    with pytest.raises(ValueError, match=r"samples are \[8, 8, 3\], the real images \[16, 16, 3\]"):
        evaluate_samples(small, images, reference, CONFIG)


def test_samples_without_a_class_are_refused(digits, tmp_path, images, reference):
    unlabelled = shards_of(tmp_path / "samples", digits[0][:9], np.full(9, -1))
    with pytest.raises(ValueError, match="needs the class of each sample"):
        evaluate_samples(unlabelled, images, reference, CONFIG)


def test_an_extractor_that_this_version_lacks_is_refused_at_once(images, reference):
    config = EvaluationConfig(extractor="inception_2015", metrics=("fid",))
    with pytest.raises(ValueError, match="'inception_2015' is not part of this version yet"):
        describe_reference(images, config)
    with pytest.raises(ValueError, match="'inception_2015' is not part of this version yet"):
        evaluate_samples(images, images, reference, config)
