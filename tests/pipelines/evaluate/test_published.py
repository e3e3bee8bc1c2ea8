"""Published reference files: whose word is taken for what."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from selfdistill.data.npz_images import NpzImages
from selfdistill.distributed_config import DistributedConfig
from selfdistill.files import sha256_of
from selfdistill.metrics.config import METRICS, EvaluationConfig
from selfdistill.metrics.statistics import Statistics
from selfdistill.pipelines.evaluate.collect import Collector
from selfdistill.pipelines.evaluate.nodes import describe_reference
from selfdistill.pipelines.evaluate.published import ReferenceFile
from selfdistill.pipelines.evaluate.reference import about_of, describe

FID, SFID, DINOV2 = (METRICS[name].need for name in ("fid", "sfid", "fd_dinov2"))
MACHINE = DistributedConfig(device="cpu", num_ranks=1)


def moments(seed: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(width, 8))
    return {"mu": rng.normal(size=width), "sigma": factor @ factor.T}


@pytest.fixture(scope="module")
def edm(tmp_path_factory) -> Path:
    """A file of EDM's: mean and covariance alone."""
    path = tmp_path_factory.mktemp("edm") / "imagenet-64x64.npz"
    np.savez(path, **moments(0, 2048))
    return path


@pytest.fixture(scope="module")
def adm(tmp_path_factory) -> Path:
    """A file of ADM's: both pairs, and images."""
    path = tmp_path_factory.mktemp("adm") / "VIRTUAL_imagenet64_labeled.npz"
    images = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    spatial = {f"{name}_s": array for name, array in moments(2, 2023).items()}
    np.savez(path, images, **moments(1, 2048), **spatial)
    return path


def pickled(path: Path, **more: object) -> Path:
    content = {"num_images": 9, "fid": moments(3, 2048), "fd_dinov2": moments(4, 1024)}
    path.write_bytes(pickle.dumps({**content, **more}))
    return path


def test_edm2s_pickle_gives_both_pairs_of_moments(tmp_path):
    file = ReferenceFile.open(pickled(tmp_path / "img512.pkl"))
    assert set(file.moments) == {FID, DINOV2}
    for need, seed, width in ((FID, 3, 2048), (DINOV2, 4, 1024)):
        np.testing.assert_array_equal(file.moments[need][0], moments(seed, width)["mu"])
        np.testing.assert_array_equal(file.moments[need][1], moments(seed, width)["sigma"])
    assert (file.images, file.sha256) == (None, sha256_of(file.path))
    assert (file.name, file.is_known_by_name) == ("img512.pkl", True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"fid": moments(0, 1024)}, r"fid must have mu \(2048,\) and sigma \(2048, 2048\)"),
        ({"fid": 5}, "fid must have mu"),
        ({"fd_dinov2": {**moments(0, 1024), "mu": np.full(1024, np.nan)}}, "NaN or infinite"),
        ({"fd_dinov2": {"mu": np.zeros(1024), "sigma": np.tri(1024)}}, "is not symmetric"),
        ({"other": Path("x")}, "img.pkl is not a pickle of arrays, and not read: it asks for"),
    ],
)
def test_a_pickle_of_anything_else_is_refused(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        ReferenceFile.open(pickled(tmp_path / "img.pkl", **more))
    (tmp_path / "none.pkl").write_bytes(pickle.dumps({"fid2": moments(0, 8)}))
    with pytest.raises(ValueError, match="holds none of fid, fd_dinov2"):
        ReferenceFile.open(tmp_path / "none.pkl")
    with pytest.raises(FileNotFoundError, match="no reference file here"):
        ReferenceFile.open(tmp_path / "absent.pkl")


def test_of_several_files_the_first_that_knows_is_believed(edm, adm, inception_file, tmp_path):
    config = EvaluationConfig(metrics=("fid", "sfid", "precision"), batch_size=4)
    described = describe_reference(
        NpzImages.open(adm), config, MACHINE, tmp_path / "scratch", edm,
        published_2=adm, inception_2015=inception_file,
    )  # fmt: skip
    known = Statistics.from_arrays(described)
    np.testing.assert_array_equal(known.moments[FID].mu, moments(0, 2048)["mu"])
    np.testing.assert_array_equal(known.moments[SFID].mu, moments(2, 2023)["mu"])
    assert [len(vectors) for vectors in known.features.values()] == [6]  # of ADM's images
    first, second = (
        {"file": path.name, "sha256": sha256_of(path), "believed": [tap], "by_name": True}
        for path, tap in ((edm, "pool_3"), (adm, "spatial"))
    )
    assert about_of(described)["published"] == {**first, "further": [second]}


def test_a_file_that_is_of_no_use_is_not_named(edm, adm, tmp_path):
    collector = Collector(EvaluationConfig(metrics=("fid",)), {}, MACHINE, tmp_path)
    files = [ReferenceFile.open(edm), ReferenceFile.open(adm)]
    about = about_of(describe(NpzImages.open(adm), files, collector))
    assert about["published"]["file"] == "imagenet-64x64.npz"
    assert "further" not in about["published"]
