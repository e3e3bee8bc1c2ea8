import subprocess
import sys
from pathlib import Path

import pytest
from kedro.pipeline import Pipeline
from kedro.validation.type_extractor import TypeExtractor

import selfdistill
from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.pipelines import evaluate

WEIGHTS = "weights.inception_2015"


SETTINGS = {"params:evaluation": "params:evaluation", "params:distributed": "params:distributed"}


@pytest.mark.filterwarnings("ignore:One or more dataset names contain")
def test_a_sampling_is_evaluated_against_its_datasets_reference():
    reference = Pipeline(
        evaluate.create_reference_pipeline(["inception_2015"], num_published=1),
        namespace="digits",
        inputs={"published": "references.digits", "weights.inception_2015": WEIGHTS},
        parameters=SETTINGS,
    )
    metrics = Pipeline(
        evaluate.create_pipeline(["inception_2015"]),
        namespace="dsd_b.guided",
        inputs={
            "images": "digits.images",
            "reference": "digits.reference",
            "weights.inception_2015": WEIGHTS,
        },
        parameters={**SETTINGS, "params:repeats": "params:dsd_b.samplings.guided.repeats"},
    )
    both = reference + metrics
    assert both.inputs() == {
        "digits.images", "digits.reference_scratch", "references.digits", WEIGHTS,
        "dsd_b.guided.samples", "dsd_b.guided.evaluate_scratch",
        "params:evaluation", "params:distributed", "params:dsd_b.samplings.guided.repeats",
    }  # fmt: skip
    assert both.outputs() == {"dsd_b.guided.metrics"}
    names = [node.name for node in both.nodes]
    assert names == ["digits.describe_reference", "dsd_b.guided.evaluate"]


def test_what_a_user_brings_needs_nothing_but_parameters_and_weights():
    compare = evaluate.create_compare_pipeline(["inception_2015"])
    assert compare.inputs() == {
        WEIGHTS, "compare.reference_scratch", "compare.evaluate_scratch", "params:distributed",
        "params:compare.samples", "params:compare.reference", "params:compare.repeats",
        "params:compare.evaluation",
    }  # fmt: skip
    assert compare.outputs() == {"compare.metrics"}


def test_kedro_validates_the_parameters_of_all_parts():
    expected = {"evaluation": EvaluationConfig, "distributed": DistributedConfig}
    for part in (evaluate.create_reference_pipeline([]), evaluate.create_pipeline([])):
        types = TypeExtractor({"part": part}).extract_types_from_pipelines()
        assert {name: types[name] for name in expected} == expected
    compare = {"compare": evaluate.create_compare_pipeline([])}
    types = TypeExtractor(compare).extract_types_from_pipelines()
    assert types["compare.evaluation"] is EvaluationConfig


def test_listing_the_nodes_imports_nothing_heavy():
    heavy = ["torch", "numpy", "pandas", "sklearn", "PIL", "pyarrow", "matplotlib"]
    code = (
        "import sys; from selfdistill.pipelines import evaluate, report; "
        f"sys.exit(', '.join(sorted(set({heavy}) & set(sys.modules))) or 0)"
    )
    source = Path(selfdistill.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True)
