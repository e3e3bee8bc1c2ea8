"""Parameters are what Kedro makes of conf, read faster; and what an experiment changes of them."""

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from selfdistill.config_loader import ProjectConfigLoader
from selfdistill.settings import CONFIG_LOADER_ARGS


def write(project, files):
    for name, text in files.items():
        file = project / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    for env in ("base", "local"):
        (project / "conf" / env).mkdir(parents=True, exist_ok=True)
    return str(project / "conf")


def kedros(source, **options):
    """Return the parameters as Kedro's own loader has them, but for anchors."""
    found = OmegaConfigLoader(source, **options, **CONFIG_LOADER_ARGS)["parameters"]
    return {name: value for name, value in found.items() if name[0] != "_"}


def ours(source, **options):
    return ProjectConfigLoader(source, **options, **CONFIG_LOADER_ARGS)["parameters"]


@pytest.mark.parametrize("env", ["base", "tiny", None])
@pytest.mark.parametrize("runtime", [{}, {"dsd_b": {"train": {"seed": 7}}}])
def test_the_projects_parameters_are_those_of_kedro(project, env, runtime, tmp_path):
    source = str(project / "conf")
    loader = ProjectConfigLoader(source, env=env, runtime_params=runtime, **CONFIG_LOADER_ARGS)
    assert loader._plain_parameters() is not None  # the fast way was taken
    assert loader["parameters"] == kedros(source, env=env, runtime_params=runtime)


def test_interpolations_are_left_to_kedro(tmp_path):
    source = write(tmp_path, {"base/parameters.yml": "a: {b: 1, c: '${a.b}'}\n"})
    assert ours(source) == {"a": {"b": 1, "c": 1}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"base/parameters.yml": "a: 1\na: 2\n"}, "duplicate"),
        ({"base/parameters/x.yml": "a: 1\n", "base/parameters/y.yml": "a: 2\n"}, "[Dd]uplicate"),
        ({"base/parameters.yml": "a: [1\n"}, "Invalid YAML"),
    ],
)
def test_mistakes_are_named_by_kedro(tmp_path, files, message):
    with pytest.raises(Exception, match=message):
        ours(write(tmp_path, files))


def test_anchors_are_merged_and_not_shown(tmp_path):
    text = "_a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, x: 3}\nc: {<<: *a}\nd: [*a, *a]\n"
    source = write(tmp_path, {"base/parameters.yml": text})
    assert ours(source) == kedros(source) == {
        "b": {"x": 3, "y": {"z": 2}},
        "c": {"x": 1, "y": {"z": 2}},
        "d": [{"x": 1, "y": {"z": 2}}] * 2,
    }  # fmt: skip


def test_numbers_words_and_dates_are_read_as_kedro_reads_them(tmp_path):
    values = ["1e-4", "-2E+3", "1.0e-4", "1_024", "2024-01-01", "on", "0x1F", "1e", "~", "1:30"]
    text = "".join(f"v{number}: {value}\n" for number, value in enumerate(values))
    source = write(tmp_path, {"base/parameters.yml": text})
    found, expected = ours(source), kedros(source)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(v) for v in expected.values()]


def test_what_is_given_out_is_a_copy(tmp_path):
    loader = ProjectConfigLoader(
        write(tmp_path, {"base/parameters.yml": "a: {b: 1}\n"}), **CONFIG_LOADER_ARGS
    )
    loader["parameters"]["a"]["b"] = 2
    assert loader["parameters"] == {"a": {"b": 1}}
    loader["parameters"] = {"a": {"b": 3}}
    assert loader["parameters"] == {"a": {"b": 3}}


def test_what_an_experiment_changes_lies_over_conf_and_under_the_command_line(tmp_path):
    source = write(
        tmp_path,
        {
            "base/parameters/a.yml": {"row": {"lr": 1, "seed": 0, "steps": 5}},
            "tiny/parameters/a.yml": {"row": {"steps": 2}},
        },
    )
    (tmp_path / "params.yaml").write_text("base: {row: {lr: 2, seed: 1}}\ntiny: {row: {lr: 3}}\n")
    assert ours(source, runtime_params={"row": {"seed": 7}}) == {
        "row": {"lr": 2, "seed": 7, "steps": 5}
    }
    assert ours(source, env="tiny") == {"row": {"lr": 3, "seed": 0, "steps": 2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("base: {rwo: {lr: 1}}", r"params\.yaml: base\.rwo: conf has no such parameter"),
        ("row: {lr: 1}", r"params\.yaml: row is no environment of conf"),
        ("- row", r"params\.yaml: is no mapping of environments"),
        ("base: 1", r"params\.yaml: is no mapping of environments"),
    ],
)
def test_an_experiment_on_what_nobody_knows_is_refused(tmp_path, changes, message):
    source = write(tmp_path, {"base/parameters/a.yml": {"row": {"lr": 0}}})
    (tmp_path / "params.yaml").write_text(changes)
    with pytest.raises(ValueError, match=message):
        ours(source)
