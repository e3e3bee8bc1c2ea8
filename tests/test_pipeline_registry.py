import subprocess
import sys
import textwrap

import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from kedro.validation.type_extractor import TypeExtractor
from pydantic import BaseModel

from selfdistill import pipeline_registry
from selfdistill.config import ProjectConfig
from selfdistill.config_loader import ProjectConfigLoader
from selfdistill.pipeline_registry import _check_names
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.settings import CONFIG_LOADER_ARGS

ROWS = ("dsd_s", "dsd_m", "dsd_b")
CASES = ("naive", "decoupled", "transformed", "averaged", "augmented")


@pytest.fixture(scope="module", params=["base", "tiny"])
def registered(request, project):
    bootstrap_project(project)
    with KedroSession.create(project, env=request.param) as session:
        session.load_context()
        return request.param, dict(pipelines)


def test_there_is_a_pipeline_a_row_a_stage_and_a_data_set(registered):
    env, found = registered
    stages = {"preprocess", "features", "train", "sample", "evaluate", "report", "export"}
    assert stages | set(ROWS) | {"__default__", "preprocess_imagenet_256"} <= found.keys()
    assert {f"sweep_{row}" for row in ROWS} <= found.keys()
    assert ("preprocess_digits_32" in found) == (env == "tiny")


def test_a_data_set_can_be_made_in_shares_verified_and_repaired(registered):
    env, found = registered
    dataset = "imagenet_256" if env == "base" else "digits_32"
    sets = {
        "preprocess": "images", "features": "features", "latents": "sd.latents",
    }  # fmt: skip
    for stage, noun in sets.items():
        assert f"{dataset}.{noun}" in found[f"{stage}_{dataset}"].all_outputs()
        assert found[f"share_{stage}_{dataset}"].all_outputs() == set()
        assert f"{dataset}.{noun}_place" in found[f"verify_{dataset}"].inputs()
        assert f"{dataset}.{noun}_place" in found[f"repair_{dataset}"].inputs()
    assert not any(name.startswith("raw.") for name in found[f"verify_{dataset}"].inputs())
    assert found[f"repair_{dataset}"].all_outputs() == {f"{dataset}.whole_images"}
    assert "features_imagenet_512" not in found  # it has no teacher
    both = {f"imagenet_512.{convention}.latents" for convention in ("sd", "edm2")}
    assert found["latents_imagenet_512"].all_outputs() == both


@pytest.mark.parametrize("teacher", ["cached", "online"])
def test_a_row_has_its_teacher_on_disk_or_at_work(project, teacher):
    bootstrap_project(project)
    params = {"dsd_b": {"teacher": teacher}}
    with KedroSession.create(project, env="tiny", runtime_params=params) as session:
        session.load_context()
        row = dict(pipelines)["dsd_b"]
    (train,) = [node for node in row.nodes if node.short_name == "train"]
    assert ("digits_32.features" in row.datasets()) == (teacher == "cached")
    assert ("params:teachers.random_dinov3_tiny" in train.inputs) == (teacher == "online")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_runs_from_raw_images_to_its_papers_table(registered, row):
    env, found = registered
    pipeline = found[row]
    produced = pipeline.all_outputs()
    for noun in (
        "checkpoint", "curves", "plain.samples", "guided.metrics", "guided.grid",
        "reconstruction.samples", "reconstruction.metrics", "release",
    ):  # fmt: skip
        assert f"{row}.{noun}" in produced
    assert "table_dsd" in produced
    others = [other for other in ROWS if other != row]
    assert not any(name.startswith(tuple(f"{o}." for o in others)) for name in produced)
    assert ("raw.digits" in produced) == (env == "tiny")
    assert ("raw.imagenet" in pipeline.inputs()) == (env == "base")
    fetched = {name for name in pipeline.inputs() if name.startswith(("weights.", "references."))}
    published = {
        "weights.inception_2015", "weights.vgg16", "weights.lpips_vgg",
        "references.adm_imagenet_256",
    }  # fmt: skip
    assert fetched == (published if env == "base" else set())


@pytest.mark.parametrize("study", ["collapse_study", "collapse_study_cifar10"])
def test_a_study_trains_its_cases_and_no_more_than_they_need(registered, study):
    _, found = registered
    prefix = study.replace("_study", "")
    cases = [f"{prefix}_{case}" for case in CASES]
    assert {f"{case}.curves" for case in cases} <= found[study].all_outputs()
    assert {f"figure_{study}", f"summary_{study}"} <= found[study].outputs()
    trained = {node.namespace for node in found[study].nodes if node.short_name == "train"}
    assert trained == set(cases)
    assert not any("features" in name or "reference" in name for name in found[study].datasets())
    assert set(cases).isdisjoint(node.namespace for node in found["__default__"].nodes)


def test_a_study_of_samplings_draws_its_figures_and_does_not_train_what_its_cases_start_from(
    registered,
):
    _, found = registered
    pipeline = found["ssd_few_steps"]
    drawn = ("strength_issd_dit", "strength_ssd_dit", "dynamics_dit", "one_step_dit")
    assert {f"figure_{name}" for name in drawn} <= pipeline.outputs()
    assert "figure_ssd_few_steps" not in pipeline.outputs()
    trained = {node.namespace for node in pipeline.nodes if node.short_name == "train"}
    assert len(trained) == 15
    assert "dit_xl_256.checkpoint" in pipeline.inputs()
    assert trained.isdisjoint(node.namespace for node in found["__default__"].nodes)


@pytest.mark.parametrize("row", ROWS)
def test_a_sweep_measures_all_points_of_one_checkpoint_and_picks(registered, row):
    _, found = registered
    pipeline = found[f"sweep_{row}"]
    assert {f"{row}.sweep", f"{row}.sweep_figure"} <= pipeline.all_outputs()
    points = {name.split(".")[1] for name in pipeline.all_outputs() if name.endswith(".samples")}
    assert len(points) == 10
    assert f"{row}.checkpoint" in pipeline.inputs()  # it is not trained again
    assert not any(name.endswith(".npz") for name in pipeline.all_outputs())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"report": "dsd_s"}, "report cannot name a row, study, figure or tr"),
        ({"sweep_mine": "dsd_s"}, "sweep_mine cannot name"),
        ({"collapse_study": "dsd_s"}, "collapse_study names both a row and a study"),
    ],
)
def test_a_name_that_another_pipeline_has_is_refused(project, changes, text):
    loader = OmegaConfigLoader(str(project / "conf"), env="tiny", **CONFIG_LOADER_ARGS)
    parameters = loader["parameters"]
    rows = {name: parameters[of] for name, of in changes.items()}
    with pytest.raises(ValueError, match=text):
        _check_names(ProjectConfig.from_parameters(parameters | rows))


def test_every_node_has_a_name_and_rows_are_namespaces(registered):
    _, found = registered
    for node in found["__default__"].nodes:
        assert "__" not in node.name
    assert set(ROWS) < {node.namespace for node in found["train"].nodes} <= found.keys()


def test_kedro_sees_the_type_of_every_parameter(registered):
    """One hint that cannot be resolved and Kedro hands a plain dict over without an error."""
    _, found = registered
    pipeline = {"__default__": found["__default__"]}
    hints = TypeExtractor(pipeline).extract_types_from_pipelines()
    inputs = {name for node in found["__default__"].nodes for name in node.inputs}
    # As written in the YAML, and checked with all the rest; a table takes whole rows.
    plain = ("paper", "data", "repeats", "samplings", "selection", "profile", *found)
    wanted = {name for name in inputs if name.startswith("params:") and not name.endswith(plain)}
    assert wanted
    for name in wanted:
        assert issubclass(hints[name.removeprefix("params:")], BaseModel), name


def test_the_registry_imports_nothing_heavy():
    """So that `kedro registry list` answers at once."""
    program = (
        "import sys, selfdistill.pipeline_registry as r; r.register_pipelines();"
        "print([m for m in ('torch', 'timm', 'mlflow', 'pandas', 'sklearn', 'PIL', 'pyarrow')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_stage_imports_timm_or_a_compiler_before_it_needs_them():
    """They take as long to import as all the rest; only teachers and optimizers ask for them."""
    program = """
        import sys
        from selfdistill.determinism import deterministic
        from selfdistill.metrics import extractors
        from selfdistill.networks import dinov2, dinov3
        from selfdistill.pipelines.evaluate import collect
        from selfdistill.pipelines.features import encode
        from selfdistill.pipelines.sample import generate
        from selfdistill.pipelines.train import job
        with deterministic("cpu"):
            print([m for m in ("timm", "torchvision", "torch._inductor") if m in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_row_takes_what_it_starts_from_and_the_latents_it_lives_in(registered):
    env, found = registered
    assert "dsd_b.checkpoint" in found["issd_dsd_b_10"].inputs()
    assert "pd_dit_xl_256_n10.checkpoint" in found["issd_pd_dit_xl_256_n10"].inputs()
    base = found["dit_xl_256"]
    if env == "base":
        assert "weights.dit_xl_256" in base.inputs()
        assert "dit_xl_256.adopt" in {node.name for node in base.nodes}
        assert not any(name.endswith(".latents") for name in base.datasets())  # it is not trained
        assert "imagenet_256.sd.latents" in found["dit_s_256"].all_outputs()
    else:
        assert not any(name.endswith(".latents") for name in base.datasets())
        assert "digits_32.sd.latents" in found["dit_xl_512"].all_outputs()


def test_a_sampling_is_measured_on_the_data_it_names(registered):
    env, found = registered
    row, name = found["issd_sd15_n10"], "issd_sd15_n10"
    by_name = {node.name: node for node in row.nodes}
    own, other = ("coco_2014", "coco_2017") if env == "base" else ("digits_8", "digits_8_centred")
    for sampling, data in (("n10", own), ("n10_2017", other)):
        assert f"{data}.images" in by_name[f"{name}.{sampling}.sample"].inputs
        evaluated = by_name[f"{name}.{sampling}.evaluate"].inputs
        assert {f"{data}.images", f"{data}.reference"} < set(evaluated)
        assert f"{data}.describe_reference" in by_name
    if env == "base":
        assert "coco_2014_train.sd_v1_5.latents" in by_name[f"{name}.train"].inputs
        wanted = {"raw.coco_2014_train", "raw.coco_2014_val", "raw.coco_2017_val"}
        assert wanted < row.inputs()
        assert "coco_2014_train.describe_reference" not in by_name


def test_a_figure_takes_only_what_has_been_measured(registered):
    _, found = registered
    taken = [name for name in found["few_steps_dit"].inputs() if not name.startswith("params:")]
    assert taken
    assert all(name.endswith(".metrics") for name in taken)
    assert found["few_steps_dit"].outputs() == {"figure_few_steps_dit"}


def test_one_pipeline_is_built_without_the_others(monkeypatch):
    built = []
    original = pipeline_registry._row_stages

    def spy(name, *rest):
        built.append(name)
        return original(name, *rest)

    monkeypatch.setattr(pipeline_registry, "_row_stages", spy)
    registered = pipeline_registry.register_pipelines()
    assert len(registered) > 150
    assert registered["issd_dsd_b_10"].nodes
    assert built == ["issd_dsd_b_10"]


def test_a_row_names_its_evaluation_and_its_dataset_what_that_is_held_against(project):
    loader = ProjectConfigLoader(str(project / "conf"), env="base", **CONFIG_LOADER_ARGS)
    values = loader["parameters"]
    values["dit_xl_512"]["evaluation"] = "edm2"
    config = ProjectConfig.from_parameters(values)
    taken = {}
    for name in ("dit_xl_512", "ssd_dit_xl_512_n10"):
        row = config.rows[name]
        reference = pipeline_registry._sources(row, config)["evaluate"]
        measured = pipeline_registry._row_stages(name, row, config)["evaluate"]
        assert reference.outputs() < measured.inputs()
        taken[name] = reference.outputs() | {
            entry for entry in reference.inputs() if not entry.startswith("params:distributed")
        }
    assert taken["dit_xl_512"] == {
        "imagenet_512.edm2.reference", "imagenet_512.images", "imagenet_512.edm2.reference_scratch",
        "references.edm2_imagenet_512", "weights.inception_2015", "weights.dinov2_vitl14",
        "params:evaluations.edm2",
    }  # fmt: skip
    assert taken["ssd_dit_xl_512_n10"] == {
        "imagenet_512.reference", "imagenet_512.images", "imagenet_512.reference_scratch",
        "references.adm_imagenet_512", "weights.inception_2015", "params:evaluation",
    }  # fmt: skip
    catalog = DataCatalog.from_config(loader["catalog"])
    files = {name: catalog[f"imagenet_512{name}.reference"].files[0] for name in (".edm2", "")}
    assert files[".edm2"] == files[""].parent / "edm2" / "reference.npz"


def test_two_reference_files_of_a_dataset_are_both_fetched(project):
    loader = ProjectConfigLoader(str(project / "conf"), env="base", **CONFIG_LOADER_ARGS)
    config = ProjectConfig.from_parameters(loader["parameters"])
    made = pipeline_registry._reference_of("imagenet_64", "edm_imagenet", config)
    (node,) = made.nodes
    assert config.datasets["imagenet_64"].published("edm_imagenet") == (
        "edm_imagenet_64", "adm_imagenet_64",
    )  # fmt: skip
    assert {"references.edm_imagenet_64", "references.adm_imagenet_64"} <= set(node.inputs)


@pytest.mark.parametrize("row", ["dsd_s", "dit_xl_512"])
def test_a_row_that_selects_takes_the_reference_and_others_do_not(project, row):
    bootstrap_project(project)
    loader = OmegaConfigLoader(str(project / "conf"), env="tiny", **CONFIG_LOADER_ARGS)
    values = loader["parameters"][row]
    data, nimg = values["data"], values["train"]["log_nimg"]
    sampling = next(iter(values["samplings"]))
    selection = {
        "metric": "fd_tiny", "sampling": sampling, "nimg": nimg, "num_images": 20,
        "batch_size": 10, "seed": 99,
    }  # fmt: skip
    params = {row: {"selection": selection}}
    with KedroSession.create(project, env="tiny", runtime_params=params) as session:
        session.load_context()
        found = {name: pipelines[name] for name in (row, "dsd_m", "plan")}
    (train,) = [node for node in found[row].nodes if node.name == f"{row}.train"]
    beside = {
        f"{data}.reference", f"params:{row}.selection", f"params:{row}.samplings.{sampling}",
        "params:evaluation.profile",
    }  # fmt: skip
    decoder = {name for name in train.inputs if name.startswith(("params:vaes", f"params:{data}."))}
    assert beside <= set(train.inputs)
    assert len(decoder) == (0 if row == "dsd_s" else 2)
    (other,) = [node for node in found["dsd_m"].nodes if node.name == "dsd_m.train"]
    assert not beside & set(other.inputs)
    (table,) = [node for node in found[row].nodes if node.short_name.startswith("tabulate_")]
    assert [name for name in table.inputs if name.endswith(".curves")] == [f"{row}.curves"]
    (planned,) = [node for node in found["plan"].nodes if node.name == f"{row}.plan_row"]
    assert f"params:{row}.selection" in planned.inputs
    hints = TypeExtractor({row: found[row]}).extract_types_from_pipelines()
    assert hints[f"{row}.samplings.{sampling}"] is SampleConfig  # of the stage sample, as before
