"""What a published reference file is believed for, and what it is not."""

import logging

import numpy as np
import pytest
import torch

from selfdistill.data.npz_images import NpzImages
from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics import definitions
from selfdistill.metrics.config import METRICS, EvaluationConfig
from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments
from selfdistill.metrics.statistics import Statistics
from selfdistill.networks.inception import load_inception
from selfdistill.pipelines.evaluate.collect import Collector
from selfdistill.pipelines.evaluate.measure import evaluate
from selfdistill.pipelines.evaluate.published import ReferenceFile
from selfdistill.pipelines.evaluate.reference import about_of, describe

FID, SFID, RFID = (METRICS[name].need for name in ("fid", "sfid", "rfid"))
NUM = 8


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM, 24, 24, 3), dtype=np.uint8)


def statistics(width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    factor = rng.normal(size=(width, 32))
    return rng.normal(size=width), factor @ factor.T


@pytest.fixture(scope="module")
def file(pixels, tmp_path_factory) -> NpzImages:
    """A file as ADM publishes them: statistics of more images than it holds."""
    (mu, sigma), (mu_s, sigma_s) = statistics(2048), statistics(2023)
    path = tmp_path_factory.mktemp("reference") / "VIRTUAL.npz"
    np.savez(path, arr_0=pixels, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    return NpzImages.open(path)


@pytest.fixture
def collector(inception_file, tmp_path):
    def collector(*metrics: str) -> Collector:
        config = EvaluationConfig(metrics=metrics, num_manifold_images=5, batch_size=4)
        machine = DistributedConfig(device="cpu", num_ranks=1)
        return Collector(config, {"inception_2015": inception_file}, machine, tmp_path / "scratch")

    return collector


@pytest.fixture(scope="module")
def pool_3(pixels, random_inception) -> torch.Tensor:
    return load_inception(random_inception)(torch.from_numpy(pixels), ("pool_3",))["pool_3"]


def moments(features: torch.Tensor) -> Moments:
    running = RunningMoments()
    running.update(features)
    return running.finish()


def test_its_statistics_are_believed_and_its_images_all_serve_precision_and_recall(
    file, collector, pool_3
):
    described = describe(file, [ReferenceFile.of(file)], collector("fid", "sfid", "precision"))
    known = Statistics.from_arrays(described)
    np.testing.assert_array_equal(known.moments[FID].mu, statistics(2048)[0])
    np.testing.assert_array_equal(known.moments[SFID].sigma, statistics(2023)[1])
    (features,) = known.features.values()
    torch.testing.assert_close(features, pool_3, rtol=1e-5, atol=1e-5)
    about = about_of(described)
    assert about["published"] == {
        "file": None, "sha256": file.fingerprint, "believed": ["pool_3", "spatial"],
    }  # fmt: skip
    assert set(about["extractors"]) == {"inception_2015"}  # of the features; but of moments alone:
    assert about_of(describe(file, [ReferenceFile.of(file)], collector("fid")))["extractors"] == {}


def test_reconstructions_are_held_against_their_own_images_not_a_larger_set(
    file, collector, pixels, pool_3, tmp_path, random_inception
):
    damaged = pixels // 2 * 2
    np.savez(tmp_path / "r.npz", damaged)
    samples, made = NpzImages.open(tmp_path / "r.npz"), collector("fid", "rfid", "psnr")
    result = evaluate(samples, file, describe(file, [ReferenceFile.of(file)], made), 1, made)[
        "metrics"
    ]
    theirs = load_inception(random_inception)(torch.from_numpy(damaged), ("pool_3",))["pool_3"]
    rfid = frechet_distance(moments(theirs), moments(pool_3))
    mu, sigma = (torch.from_numpy(array) for array in statistics(2048))
    fid = frechet_distance(moments(theirs), Moments(mu, sigma, 0))
    assert result["rfid"] == pytest.approx(rfid, rel=1e-4)
    assert result["fid"] == pytest.approx(fid, rel=1e-6)
    assert result["psnr"] > 48


def test_a_file_that_is_none_of_adms_is_believed_with_a_warning(file, collector, caplog):
    with caplog.at_level(logging.WARNING):
        describe(file, [ReferenceFile.of(file)], collector("fid"))
    assert "none of the reference files that we know" in caplog.text


def test_adms_own_file_is_known_by_its_sha256(file, collector, caplog, monkeypatch):
    monkeypatch.setitem(definitions.REFERENCES, file.fingerprint, "VIRTUAL.npz")
    with caplog.at_level(logging.WARNING):
        about = about_of(describe(file, [ReferenceFile.of(file)], collector("fid")))
    assert about["published"]["file"] == "VIRTUAL.npz"
    assert not caplog.records


def test_images_alone_are_drawn_from_for_precision_and_recall(
    pixels, collector, shard_set, tmp_path
):
    images = shard_set(tmp_path / "shards", pixels)
    described = describe(images, [], collector("fid", "recall"))
    known = Statistics.from_arrays(described)
    assert known.moments[FID].num == NUM
    assert [len(features) for features in known.features.values()] == [5]
    assert about_of(described)["published"] is None


def test_statistics_alone_do_not_do_where_images_are_needed(collector, tmp_path):
    mu, sigma = statistics(2048)
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    file = NpzImages.open(tmp_path / "s.npz")
    assert (
        Statistics.from_arrays(describe(file, [ReferenceFile.of(file)], collector("fid")))
        .moments[FID]
        .num
        == 0
    )
    for metric, missing in {"sfid": "spatial", "precision": "pool_3"}.items():
        with pytest.raises(ValueError, match=rf"s\.npz holds no images, of which {missing} of"):
            describe(file, [ReferenceFile.of(file)], collector(metric))


def test_the_reference_of_another_dataset_is_refused(file, collector, shard_set, tmp_path):
    images = shard_set(tmp_path / "small", np.zeros((9, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="it is the reference of another dataset"):
        describe(images, [ReferenceFile.of(file)], collector("fid", "precision"))


@pytest.mark.slow
def test_any_number_of_processes_gives_inceptions_numbers_to_nine_digits(
    pixels, inception_file, shard_set, tmp_path
):
    images = np.concatenate(
        [pixels, 255 - pixels, pixels[:, ::-1], pixels[:, :, ::-1], pixels // 2]
    )
    half = len(images) // 2
    reference, samples = (
        shard_set(tmp_path / str(start), images[start : start + half]) for start in (0, half)
    )
    config = EvaluationConfig(metrics=("fid", "sfid", "inception_score"), batch_size=1)
    results = []
    for num_ranks in (1, 2, 5):
        machine = DistributedConfig(device="cpu", num_ranks=num_ranks)
        scratch = tmp_path / f"scratch{num_ranks}"
        made = Collector(config, {"inception_2015": inception_file}, machine, scratch)
        described = describe(reference, [], made)
        results.append(evaluate(samples, reference, described, 1, made)["metrics"])
    for metric, value in results[0].items():
        for other in results[1:]:
            assert other[metric] == pytest.approx(value, rel=1e-9)
