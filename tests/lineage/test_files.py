"""The files that DVC reads are those of the registry, the catalog and the parameters."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from selfdistill.lineage.files import generate, outdated, write
from selfdistill.lineage.stages import FOLDER, PROGRAMS, Family, owner_of
from selfdistill.pipelines.train.config import NEUTRAL


@pytest.fixture(scope="module")
def texts(project):
    return generate(project)


@pytest.fixture(scope="module")
def base(project):
    return Family(project, "base")


@pytest.fixture(scope="module")
def tiny(project, base):
    return Family(project, "tiny", base)


def stages_of(texts, path):
    return yaml.safe_load(texts[Path(path)])["stages"]


def test_the_files_in_the_repository_are_what_sync_writes(project, texts):
    assert outdated(project, texts) == [], "run kedro dvc sync and commit"


def test_every_row_and_dataset_has_a_file_and_the_root_has_the_tables(texts, base, tiny):
    for family, folder in ((base, FOLDER), (tiny, FOLDER / "tiny")):
        for name in (*family.rows, *family.datasets):
            assert folder / name / "dvc.yaml" in texts
    reports = {"report_dsd", "report_sida", "report_ssd", "report_collapse_study"}
    figures = base.config.figures
    assert reports | {f"report_{name}" for name in figures} <= stages_of(texts, "dvc.yaml").keys()
    reports |= {f"report_{name}" for name, one in figures.items() if {*one.rows} <= {*tiny.rows}}
    assert reports == stages_of(texts, "pipelines.dvc/tiny/dvc.yaml").keys()
    assert "report_one_step_cifar10_small" not in reports  # of a study that has no row in tiny
    assert tiny.datasets == ["digits_32", "digits_8", "digits_8_centred"]
    assert "collapse_cifar10_naive" in base.rows
    assert "collapse_cifar10_naive" not in tiny.rows


def test_a_row_trains_once_and_is_sampled_and_measured_sampling_by_sampling(texts):
    stages = stages_of(texts, "pipelines.dvc/dsd_b/dvc.yaml")
    parts = ("plain", "unshifted", "guided", "reconstruction")
    measured = {f"{stage}_{part}" for stage in ("sample", "evaluate") for part in parts}
    assert stages.keys() == {"train", "export", *measured}
    train = stages["train"]
    assert train["cmd"] == (
        "exec kedro run --env=local --pipelines=dsd_b --nodes=dsd_b.train,dsd_b.extract_curves"
    )
    assert train["wdir"] == "../.."
    assert "data/03_primary/imagenet_256/images" in train["deps"]
    assert "data/04_feature/imagenet_256/features" in train["deps"]
    assert train["outs"] == [
        "data/06_models/dsd_b/checkpoint",
        "data/08_reporting/dsd_b/curves.jsonl",
        "data/08_reporting/dsd_b/curves.csv",
    ]
    assert train["params"] == [
        {"pipelines.dvc/dsd_b/values.json": ["dsd_b.method", "dsd_b.network", "dsd_b.train"]},
        {"pipelines.dvc/given.yaml": ["weights.lpips_vgg", "weights.vgg16"]},
    ]
    assert stages["evaluate_plain"]["metrics"] == ["data/08_reporting/dsd_b/plain/metrics.json"]


def test_every_node_of_a_row_stands_in_one_stage(base, tiny):
    for family in (base, tiny):
        names = [node.name for stage in family.stages for node in stage.nodes]
        assert len(names) == len(set(names))
        for row in family.rows:
            nodes = {node.name for node in family.pipelines[row].nodes}
            assert nodes <= set(names), row


def test_the_nodes_of_a_stage_can_be_run_by_its_command(base, tiny):
    for family in (base, tiny):
        for stage in family.stages:
            names = {node.name for node in family.pipelines[stage.pipeline].nodes}
            assert {node.name for node in stage.nodes} <= names, stage.name


def all_stages(texts):
    files = (path for path in texts if path.name == "dvc.yaml")
    return [stage for path in files for stage in stages_of(texts, path).values()]


def names_of(entries):
    return [name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)]


def test_no_file_is_the_output_of_two_stages_and_every_dependency_is_one(texts):
    """But for what is in git: code, lock, conf."""
    outs, deps = [], set()
    for stage in all_stages(texts):
        outs += names_of([*stage.get("outs", []), *stage.get("metrics", [])])
        deps |= {*stage["deps"], *names_of(stage.get("params", []))}
    assert len(outs) == len(set(outs))
    of_git = ("src/", "requirements.lock", "conf/", "params.yaml", "pipelines.dvc/given.yaml")
    assert {dep for dep in deps if not dep.startswith(of_git)} <= set(outs)


def test_neither_scratch_nor_the_machine_nor_raw_images_are_dependencies(texts):
    for stage in all_stages(texts):
        for dep in stage["deps"]:
            assert "scratch" not in dep
            assert "01_raw" not in dep
        params = [keys for entry in stage.get("params", []) for keys in entry.values()]
        keys = [key for one in params for key in one]
        assert not [key for key in keys if key.startswith("distributed")]


def test_parameters_are_what_kedro_makes_of_conf(texts, base, tiny):
    for family, file in ((base, "dsd_b"), (tiny, "tiny/dsd_b")):
        values = json.loads(texts[FOLDER / file / "values.json"])
        row = family.parameters["dsd_b"]
        train = {key: value for key, value in row["train"].items() if key not in NEUTRAL}
        assert values["dsd_b"]["train"] == train
        assert values["dsd_b"]["samplings"] == row["samplings"]
        assert values["evaluation"] == family.parameters["evaluation"]
        assert "sweep" not in values["dsd_b"]  # no stage takes it


def test_what_is_fetched_or_brought_counts_by_what_the_catalog_pins(texts):
    given = {"pipelines.dvc/given.yaml": ["references.adm_imagenet_256", "weights.inception_2015"]}
    assert given in stages_of(texts, "pipelines.dvc/imagenet_256/dvc.yaml")["evaluate"]["params"]
    pins = yaml.safe_load(texts[FOLDER / "given.yaml"])
    assert len(pins["weights"]["inception_2015"]["sha256"]) == 64
    assert pins["raw"]["cifar10"] == {"layout": "parquet", "split": "train"}


def test_stages_depend_on_the_code_of_their_own_method_and_network(texts, base):
    stages = stages_of(texts, "pipelines.dvc/dsd_b/dvc.yaml")
    assert "pipelines.dvc/code/train_dsd_dsd_vit.json" in stages["train"]["deps"]
    assert "pipelines.dvc/code/evaluate.json" in stages["evaluate_plain"]["deps"]
    programs = stages_of(texts, PROGRAMS / "dvc.yaml")
    assert "src/selfdistill/methods/dsd.py" in programs["train_dsd_dsd_vit"]["deps"]
    for name in ("evaluate", "preprocess", "features", "report"):
        assert "src/selfdistill/methods/dsd.py" not in programs[name]["deps"]
    for stage in base.stages:
        assert base.program(stage).name in programs


def test_stages_of_one_program_are_of_one_folder(base):
    """What a program is named by is the folder of all nodes of its stages."""
    for stage in base.stages:
        assert len({node.func.__module__ for node in stage.nodes}) == 1, stage.name
        assert len({owner_of(node) for node in stage.nodes}) == 1, stage.name


def test_sync_writes_what_differs_removes_what_is_no_more_and_keeps_changes(project, tmp_path):
    for name in ("conf", "requirements.lock"):
        copy = shutil.copytree if (project / name).is_dir() else shutil.copyfile
        copy(project / name, tmp_path / name)
    mine = "tiny: {dsd_b: {train: {seed: 5}}}\n"
    (tmp_path / "params.yaml").write_text(mine)
    gone = tmp_path / FOLDER / "gone"
    gone.mkdir(parents=True)
    made = generate(tmp_path)
    (gone / "dvc.yaml").write_text(made[Path("dvc.yaml")])
    other = tmp_path / FOLDER / "other" / "dvc.yaml"
    other.parent.mkdir()
    other.write_text("stages: {}\n")
    assert set(outdated(tmp_path, made)) == {*made, FOLDER / "gone" / "dvc.yaml"}
    assert set(write(tmp_path, made)) == {*made, FOLDER / "gone" / "dvc.yaml"}
    assert not (gone / "dvc.yaml").exists()
    assert other.exists()  # nothing of ours
    assert (tmp_path / "params.yaml").read_text() == mine
    values = json.loads((tmp_path / FOLDER / "tiny" / "dsd_b" / "values.json").read_text())
    assert values["dsd_b"]["train"]["seed"] == 5
    again = generate(tmp_path)
    assert again == made
    assert write(tmp_path, again) == []
    edited = tmp_path / FOLDER / "dsd_b" / "dvc.yaml"
    edited.write_text(edited.read_text().replace("kedro run", "kedro  run"))
    assert outdated(tmp_path, again) == [FOLDER / "dsd_b" / "dvc.yaml"]


def test_a_training_that_selects_depends_on_reference_solver_and_metric_and_no_other_does(
    conf, texts
):
    selection = {
        "metric": "fid", "sampling": "plain", "nimg": 1_024_000, "num_images": 50_000,
        "batch_size": 64, "seed": 99,
    }  # fmt: skip
    conf.change("base/parameters/dsd.yml", {"dsd_s": {"selection": selection}})
    family = Family(conf.path.parent, "base")
    (stage, other) = (
        next(one for one in family.stages if one.name == "train" and owner_of(one.nodes[0]) == name)
        for name in ("dsd_s", "dsd_m")
    )
    described, usual = family.describe(stage), family.describe(other)
    assert usual == stages_of(texts, "pipelines.dvc/dsd_m/dvc.yaml")["train"]
    assert "data/04_feature/imagenet_256/reference.npz" in described["deps"]
    (of_values, of_files) = described["params"]
    (keys,) = of_values.values()
    assert {"dsd_s.selection", "dsd_s.samplings.plain.solver", "evaluation.profile"} <= set(keys)
    assert not {"dsd_s.samplings.plain", "dsd_s.samplings.plain.shard_size"} & set(keys)
    assert "weights.inception_2015" in next(iter(of_files.values()))
    measuring, plain = (family.program(one) for one in (stage, other))
    assert measuring.name == f"{plain.name}_selecting"
    file = "src/selfdistill/metrics/frechet.py"
    assert file in measuring.describe()["deps"]
    assert file not in plain.describe()["deps"]
