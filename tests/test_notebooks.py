"""The notebooks run from top to bottom on a row of a few steps, as they are in git."""

import shutil

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

nbformat = pytest.importorskip("nbformat", reason="needs nbformat, of the group dev")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the group dev")
pytest.importorskip("ipykernel", reason="needs ipykernel, of the group dev")

SAMPLING = {"num_steps": 2, "num_images": 20, "batch_size": 20, "shard_size": 20}
ROW = {
    "network": {"width": 32, "depth": 3},
    "train": {"total_nimg": 256, "log_nimg": 128, "checkpoint_nimg": 128},
    "samplings": {"plain": SAMPLING, "guided": SAMPLING},
}


@pytest.fixture
def copy(project, conf, monkeypatch):
    """A copy of the project with its notebooks, and a row that has been run."""
    conf.change("tiny/parameters/dsd.yml", {"dsd_b": ROW})
    return _beside(project, conf, monkeypatch, ["dsd_b"])


def _beside(project, conf, monkeypatch, *runs):
    """Run pipelines, and return a folder with their conf, the notebooks and the sources."""
    for names in runs:
        bootstrap_project(project)
        with KedroSession.create(project, env="tiny", conf_source=str(conf.path)) as session:
            session.run(pipeline_names=names)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the notebook's process beside those of the tests
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    root = conf.path.parent
    shutil.copy(project / "pyproject.toml", root)
    shutil.copytree(project / "notebooks", root / "notebooks")
    (root / "src").mkdir()  # Kedro wants a folder of the project's own
    (root / "src" / "selfdistill").symlink_to(project / "src" / "selfdistill")
    return root


def test_no_notebook_is_committed_with_outputs_and_each_says_what_may_be_changed(project):
    files = sorted((project / "notebooks").glob("*.ipynb"))
    assert files
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in cells), file
        tags = [cell.metadata.get("tags") for cell in cells]
        assert tags.count(["parameters"]) == 1, file


def test_the_dsd_notebook_runs_on_a_row_of_a_few_steps(copy):
    notebook = nbformat.read(copy / "notebooks" / "dsd.ipynb", as_version=4)
    resources = {"metadata": {"path": str(copy)}}
    client = nbclient.NotebookClient(notebook, timeout=120, resources=resources)
    client.execute()  # an error of a cell is raised here
    shown = {
        cell.id: {kind for output in cell.outputs for kind in output.get("data", {})}
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    pictures = sum("image/png" in kinds for kinds in shown.values())
    assert pictures >= 8  # curves, ranks, grid, samples, guidance, pairs, images, noises


def test_the_ssd_notebook_runs_on_rows_of_a_few_steps(project, conf, monkeypatch):
    train = {"total_nimg": 128, "log_nimg": 64, "checkpoint_nimg": 64, "num_probe_images": 8}
    sampling = {"num_images": 20, "batch_size": 20, "shard_size": 20}
    names = ("dit_xl_256", "ssd_dit_xl_256_n10", "issd_dit_xl_256_n10")
    samplings = dict.fromkeys(("n250", "n50", "n20", "n10", "n4"), sampling)
    rows = {name: {"train": train, "samplings": {"n10": sampling}} for name in names}
    rows["dit_xl_256"]["samplings"] = samplings
    conf.change("tiny/parameters/ssd.yml", rows)
    root = _beside(project, conf, monkeypatch, [*names], ["few_steps_dit"])
    notebook = nbformat.read(root / "notebooks" / "ssd.ipynb", as_version=4)
    resources = {"metadata": {"path": str(root)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "mixed_error" in text
    assert "10 lambda [0.413, 0.423" in text  # the first of docs/ssd.md's second-order weights
