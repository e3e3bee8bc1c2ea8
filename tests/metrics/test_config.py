import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import selfdistill
from selfdistill.metrics.config import METRICS, AdmMetric, EvaluationConfig
from selfdistill.metrics.extractors import EXTRACTORS
from selfdistill.metrics.metric import ExtractorName


def test_every_extractor_has_metrics_and_those_of_adms_are_the_ones_that_papers_give():
    assert {metric.extractor for metric in METRICS.values()} == set(get_args(ExtractorName))
    adm = [name for name, metric in METRICS.items() if metric.extractor == "inception_2015"]
    assert adm == list(get_args(AdmMetric))


def test_every_metric_of_an_available_extractor_can_be_measured_and_shown():
    for name, metric in METRICS.items():
        assert float(format(0.5, metric.digits)) == pytest.approx(0.5, abs=0.01), name
        assert metric.measure is not None or metric.extractor not in EXTRACTORS, name


@pytest.mark.parametrize("metric", ["fid", "sfid", "inception_score"])
def test_the_tiny_extractor_never_measures_a_metric_of_the_paper(metric):
    with pytest.raises(ValidationError, match=rf"'{metric}'.*do not belong to .*'tiny'"):
        EvaluationConfig(extractor="tiny", metrics=("fd_tiny", metric))


def test_a_metric_named_twice_is_refused():
    with pytest.raises(ValidationError, match="named twice"):
        EvaluationConfig(extractor="tiny", metrics=("fd_tiny", "fd_tiny"))


def test_no_metrics_are_refused():
    with pytest.raises(ValidationError):
        EvaluationConfig(extractor="tiny", metrics=())


def test_reading_and_checking_a_config_imports_no_torch():
    code = (
        "import sys; from selfdistill.metrics.config import EvaluationConfig as C; "
        "from selfdistill.metrics.extractors import check_evaluation as check; "
        "check(C(extractor='tiny', metrics=('fd_tiny',))); sys.exit('torch' in sys.modules)"
    )
    source = Path(selfdistill.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True)
