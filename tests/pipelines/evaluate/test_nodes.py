import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from selfdistill.data.shard_writer import ShardWriter, finalize
from selfdistill.data.shards import Shards
from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.class_accuracy import thumbnails
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.pipelines.evaluate.checks import check_sets
from selfdistill.pipelines.evaluate.nodes import describe_reference, evaluate_samples

CONFIG = EvaluationConfig(metrics=("fd_tiny", "class_accuracy"), batch_size=100)
HERE = DistributedConfig(device="cpu", num_ranks=1)
TINY = "tiny/filters/moments"
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
def reference(images, tmp_path_factory) -> dict[str, Any]:
    return describe_reference(images, CONFIG, HERE, tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def evaluated(tmp_path, images, reference):
    def evaluate(
        samples: Shards, config: EvaluationConfig = CONFIG, repeats: int = 1
    ) -> dict[str, Any]:
        return evaluate_samples(
            samples, images, reference, config, HERE, tmp_path / "scratch", repeats
        )

    return evaluate


@pytest.fixture
def sampled(tmp_path, evaluated):
    """Evaluate pixels as if a network had generated them."""

    def evaluate(pixels: np.ndarray, labels: np.ndarray, repeats: int = 1) -> dict[str, Any]:
        return evaluated(shards_of(tmp_path / "samples", pixels, labels, ABOUT), repeats=repeats)

    return evaluate


def moments_of(pixels: np.ndarray) -> Moments:
    running = RunningMoments()
    running.update(TinyExtractor()(pixels, ("filters",))["filters"])
    return running.finish()


def test_the_reference_holds_the_moments_of_all_images(images, reference):
    exact = moments_of(images.read(np.arange(len(images))))
    np.testing.assert_allclose(reference[f"{TINY}/mu"], exact.mu, rtol=1e-10)
    np.testing.assert_allclose(reference[f"{TINY}/sigma"], exact.sigma, rtol=1e-8, atol=1e-10)
    assert reference[f"{TINY}/num"] == len(images)


def test_the_reference_is_arrays_that_an_npz_holds_without_pickle(reference):
    assert all(isinstance(value, np.ndarray) for value in reference.values())
    assert all(value.dtype.kind in "fiU" for value in reference.values())


def test_the_reference_does_not_depend_on_the_batch_size(images, reference, tmp_path):
    config = CONFIG.model_copy(update={"batch_size": 64})
    other = describe_reference(images, config, HERE, tmp_path)
    for name in (f"{TINY}/mu", f"{TINY}/sigma", "noise", "real_halves"):
        np.testing.assert_allclose(other[name], reference[name], rtol=1e-7, atol=1e-9)


def test_real_halves_are_near_and_noise_is_far(reference):
    assert 0 < reference["real_halves"] < 0.2
    assert reference["noise"] > 500 * reference["real_halves"]


def test_unseen_real_images_score_far_better_than_noise(sampled, digits):
    pixels, labels = digits
    result = sampled(pixels[-300:], labels[-300:])
    assert result["metrics"]["fd_tiny"] < 0.02 * result["baselines"]["fd_tiny"]["noise"]
    assert result["metrics"]["class_accuracy"] > 0.9
    assert result["baselines"]["class_accuracy"]["real"] > 0.97


def test_noise_scores_as_its_baseline_and_its_class_is_a_guess(sampled, reference):
    eps = np.random.default_rng(7).standard_normal((300, 16, 16, 3)).clip(-1, 1)
    result = sampled((127.5 * eps + 128).clip(0, 255).astype(np.uint8), np.arange(300) % 10)
    noise = float(reference["noise"])
    assert result["metrics"]["fd_tiny"] == pytest.approx(noise, rel=0.02)
    assert result["baselines"]["fd_tiny"]["noise"] == pytest.approx(noise, rel=1e-9)
    assert result["metrics"]["class_accuracy"] < 0.2


def test_the_distance_is_that_of_the_samples_features(sampled, digits, reference):
    pixels, labels = digits
    mu, sigma = (torch.from_numpy(reference[f"{TINY}/{part}"]) for part in ("mu", "sigma"))
    expected = frechet_distance(moments_of(pixels[:50]), Moments(mu, sigma, 0))
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
    assert protocol["extractors"] == {
        "tiny": {
            "weights_sha256": TinyExtractor().weights_sha256,
            "resize": "adaptive average to 32x32",
            "device": "cpu",
        }
    }
    assert protocol["quantisation"] == ABOUT["quantisation"]
    assert protocol["num_samples"] == 300
    about = protocol["reference"]
    assert (about["images"], about["num_images"]) == (images.fingerprint, len(images))
    assert about["published"] is None
    assert about["extractors"] == protocol["extractors"]
    assert protocol["samples"] == ABOUT
    assert {"torch", "numpy", "scipy", "selfdistill"} <= protocol["versions"].keys()


def test_repeats_are_consecutive_parts_with_mean_and_standard_deviation(sampled, digits):
    pixels, labels = digits
    together = sampled(pixels[-300:], labels[-300:], repeats=3)
    values = together["repeats"]["fd_tiny"]
    assert len(values) == 3
    assert together["metrics"]["fd_tiny"] == pytest.approx(np.mean(values), rel=1e-9)
    assert together["std"]["fd_tiny"] == pytest.approx(np.std(values, ddof=1), rel=1e-8)
    assert together["protocol"]["num_samples"] == 100


def test_a_repeat_is_what_its_part_scores_alone(sampled, evaluated, digits, tmp_path):
    pixels, labels = digits
    second = shards_of(tmp_path / "second", pixels[-200:-100], labels[-200:-100], ABOUT)
    alone = evaluated(second)["metrics"]
    together = sampled(pixels[-300:], labels[-300:], repeats=3)["repeats"]
    assert {name: values[1] for name, values in together.items()} == alone


def test_samples_that_do_not_divide_into_the_repeats_are_refused(sampled, digits):
    pixels, labels = digits
    with pytest.raises(ValueError, match="300 samples do not divide into 7 repeats"):
        sampled(pixels[-300:], labels[-300:], repeats=7)


def test_the_same_samples_give_the_same_bytes(sampled, evaluated, digits, tmp_path):
    pixels, labels = digits
    first = sampled(pixels[-300:], labels[-300:])
    again = evaluated(Shards.open(tmp_path / "samples"))
    assert json.dumps(first) == json.dumps(again)


def test_no_statistics_of_the_samples_are_left_behind(sampled, digits, tmp_path):
    sampled(digits[0][-300:], digits[1][-300:])
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [".lock"]


def test_only_the_metrics_asked_for_are_measured(digits, tmp_path, evaluated):
    pixels, labels = digits
    samples = shards_of(tmp_path / "samples", pixels[:50], labels[:50])
    result = evaluated(samples, EvaluationConfig(metrics=("fd_tiny",)))
    assert result["metrics"].keys() == {"fd_tiny"}
    assert result["baselines"].keys() == {"fd_tiny"}
    assert result["baselines"]["fd_tiny"].keys() == {"noise", "real_halves"}
    assert result["protocol"]["quantisation"] == "not recorded by the sampler"


def test_a_reference_of_other_images_is_refused(digits, tmp_path, images, reference):
    pixels, labels = digits
    other = shards_of(tmp_path / "other", pixels[:100], labels[:100])
    with pytest.raises(ValueError, match=r"other images.*run the node describe_reference again"):
        evaluate_samples(images, other, reference, CONFIG, HERE, tmp_path / "scratch")


def test_a_reference_that_was_made_for_other_metrics_is_refused(images, evaluated):
    with pytest.raises(ValueError, match=r"does not know pool_3 of inception_2015, which fid"):
        evaluated(images, EvaluationConfig(metrics=("fid",)))


def test_samples_of_another_size_are_refused(tmp_path, evaluated):
    small = shards_of(tmp_path / "small", np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9))
    with pytest.raises(ValueError, match=r"samples are \[8, 8, 3\], the real images \[16, 16"):
        evaluated(small)


def test_samples_without_a_class_are_refused(digits, tmp_path, evaluated):
    unlabelled = shards_of(tmp_path / "samples", digits[0][:9], np.full(9, -1))
    with pytest.raises(ValueError, match="needs the class of each image"):
        evaluated(unlabelled)


def test_reconstructions_are_compared_with_their_own_images(images, evaluated, tmp_path):
    pixels = images.read(np.arange(len(images)))
    damaged = shards_of(tmp_path / "r", pixels // 2 * 2, images.labels)  # half of it is 1 off
    off = 1 - (pixels == pixels // 2 * 2).mean(axis=(1, 2, 3))
    expected = (10 * np.log10(255**2 / off)).mean()
    result = evaluated(damaged, EvaluationConfig(metrics=("psnr",)))
    assert result["metrics"]["psnr"] == pytest.approx(expected, rel=1e-9)


def test_fewer_reconstructions_than_images_are_refused(images, evaluated, digits, tmp_path):
    some = shards_of(tmp_path / "some", digits[0][:9], digits[1][:9])
    with pytest.raises(ValueError, match="psnr need one sample for each image"):
        evaluated(some, EvaluationConfig(metrics=("psnr",)))


def test_reconstructions_that_equal_their_images_are_counted_not_averaged(
    images, evaluated, tmp_path
):
    pixels = images.read(np.arange(len(images)))
    pixels[0] = 255 - pixels[0]
    one_off = shards_of(tmp_path / "r", pixels, images.labels)
    result = evaluated(one_off, EvaluationConfig(metrics=("psnr",)))
    assert result["protocol"]["metrics"]["psnr"]["num_equal"] == len(images) - 1
    assert np.isfinite(result["metrics"]["psnr"])
    with pytest.raises(ValueError, match="every sample equals its image"):
        evaluated(images, EvaluationConfig(metrics=("psnr",)))


def test_a_reference_made_in_another_way_is_refused(images, reference, evaluated, tmp_path):
    about = json.loads(str(reference["about"]))
    about["extractors"]["tiny"]["weights_sha256"] = "0" * 64
    other = {**reference, "about": np.array(json.dumps(about))}
    with pytest.raises(ValueError, match=r"with other weights or another profile of tiny"):
        evaluate_samples(images, images, other, CONFIG, HERE, tmp_path / "scratch")


def test_too_few_real_images_are_refused_before_any_work(digits, tmp_path):
    few = shards_of(tmp_path / "few", digits[0][:3], digits[1][:3])
    with pytest.raises(ValueError, match=r"few: fd_tiny need 4 real images or more, it holds 3"):
        check_sets(few, few, EvaluationConfig(metrics=("fd_tiny",)), 1)
