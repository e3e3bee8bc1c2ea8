import pytest
from kedro.config import OmegaConfigLoader

from selfdistill.metrics.config import METRICS, needs_of
from selfdistill.metrics.definitions import DEFINITIONS, accepted_sha256, weights_of


def test_the_catalog_fetches_the_weights_that_the_definitions_accept(project):
    catalog = OmegaConfigLoader(str(project / "conf"), base_env="base", default_run_env="base")[
        "catalog"
    ]
    for name in weights_of(needs_of(METRICS)):
        (weights,) = {
            d.weights.name: d.weights
            for d in DEFINITIONS.values()
            if d.weights and d.weights.name == name
        }.values()
        entry = catalog[f"weights.{name}"]
        assert entry["sha256"] == weights.sha256[entry["filepath"].rsplit("/")[-1]]
        assert entry["url"].rsplit("/")[-1] == entry["filepath"].rsplit("/")[-1]


def test_weights_are_named_once_for_all_the_metrics_that_take_them():
    assert weights_of(needs_of(["fid", "sfid", "inception_score"])) == ["inception_2015"]
    assert weights_of(needs_of(["fd_dinov2", "fd_dinov2_pil"])) == ["dinov2_vitl14"]
    assert weights_of(needs_of(["fd_tiny", "class_accuracy", "psnr"])) == []


def test_another_network_may_not_be_called_fid(tmp_path):
    file = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    file.write_bytes(b"another network")
    with pytest.raises(ValueError, match=r"pth \(sha256 [0-9a-f]{8}\.\.\.\) is not the network"):
        accepted_sha256("inception_2015", {"inception_2015": file})


def test_an_extractor_without_weights_takes_no_file():
    assert accepted_sha256("tiny", {}) is None
