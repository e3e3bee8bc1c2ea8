import subprocess
import sys
from pathlib import Path

import pytest
from kedro.pipeline import Pipeline
from kedro.validation.type_extractor import TypeExtractor

import selfdistill
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.pipelines import evaluate


@pytest.mark.filterwarnings("ignore:One or more dataset names contain")
def test_a_sampling_is_evaluated_against_its_datasets_reference():
    reference = Pipeline(
        evaluate.create_reference_pipeline(),
        namespace="digits",
        parameters={"params:evaluation": "params:evaluation"},
    )
    metrics = Pipeline(
        evaluate.create_pipeline(),
        namespace="dsd_b.guided",
        inputs={"images": "digits.images", "reference": "digits.reference"},
        parameters={"params:evaluation": "params:evaluation"},
    )
    both = reference + metrics
    assert both.inputs() == {"digits.images", "dsd_b.guided.samples", "params:evaluation"}
    assert both.outputs() == {"dsd_b.guided.metrics"}
    names = [node.name for node in both.nodes]
    assert names == ["digits.describe_reference", "dsd_b.guided.evaluate"]


def test_kedro_validates_the_parameters_of_both_parts():
    for part in (evaluate.create_reference_pipeline(), evaluate.create_pipeline()):
        types = TypeExtractor({"part": part}).extract_types_from_pipelines()
        assert types == {"evaluation": EvaluationConfig}


def test_listing_the_nodes_imports_nothing_heavy():
    heavy = ["torch", "numpy", "pandas", "sklearn", "PIL", "pyarrow", "matplotlib"]
    code = (
        "import sys; from selfdistill.pipelines import evaluate, report; "
        f"sys.exit(', '.join(sorted(set({heavy}) & set(sys.modules))) or 0)"
    )
    source = Path(selfdistill.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True)
