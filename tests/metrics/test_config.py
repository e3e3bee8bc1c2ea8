import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import selfdistill
from selfdistill.metrics.config import METRICS, EvaluationConfig, PublishedMetric, needs_of
from selfdistill.metrics.definitions import DEFINITIONS
from selfdistill.metrics.metric import ExtractorName, Need


def test_metrics_are_made_of_the_extractors_that_define_them():
    used = {metric.need.extractor for metric in METRICS.values() if metric.need}
    assert used == set(get_args(ExtractorName)) == set(DEFINITIONS)
    for name in ("fid", "sfid", "inception_score", "precision", "recall", "rfid"):
        assert METRICS[name].need.extractor == "inception_2015"
    assert set(get_args(PublishedMetric)) <= METRICS.keys()


def test_numbers_are_shown_as_the_field_prints_them():
    shown = {name: format(3.94256, METRICS[name].digits) for name in ("fid", "sfid", "fd_dinov2")}
    assert set(shown.values()) == {"3.94"}
    assert format(215.837, METRICS["inception_score"].digits) == "215.8"
    assert format(0.8265, METRICS["precision"].digits) == "0.827"


def test_needs_are_shared_by_the_metrics_and_the_reference_has_no_score():
    needs = needs_of(["fid", "rfid", "inception_score", "precision", "recall", "psnr"])
    assert [need.kind for need in needs] == ["scores", "features", "moments", "own_moments"]
    of_reference = needs_of(["fid", "inception_score"], of_reference=True)
    assert of_reference == (Need("inception_2015", "pool_3", "moments"),)


def test_unknown_metrics_are_refused_with_those_there_are():
    with pytest.raises(ValidationError, match=r"no metrics \['fidd'\]; there are fid, sfid"):
        EvaluationConfig(metrics=("fidd",))


def test_a_metric_named_twice_is_refused():
    with pytest.raises(ValidationError, match="named twice"):
        EvaluationConfig(metrics=("fd_tiny", "fd_tiny"))


def test_no_metrics_are_refused():
    with pytest.raises(ValidationError):
        EvaluationConfig(metrics=())


def test_reading_and_checking_a_config_imports_no_torch():
    code = (
        "import sys; from selfdistill.metrics.config import EvaluationConfig as C; "
        "from selfdistill.metrics.definitions import weights_of; "
        "C(metrics=('fid',)); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    source = Path(selfdistill.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True)
