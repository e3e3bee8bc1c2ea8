import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import selfdistill
from selfdistill.metrics.config import METRICS_OF, EvaluationConfig, ExtractorName


def test_each_extractor_has_its_own_metrics():
    names = [metric for metrics in METRICS_OF.values() for metric in metrics]
    assert set(METRICS_OF) == set(get_args(ExtractorName))
    assert len(names) == len(set(names))


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
