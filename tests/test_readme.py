"""The README shows the table that the report makes, of the rows that are configured."""

import re

from kedro.config import OmegaConfigLoader

from selfdistill.config import ProjectConfig
from selfdistill.pipelines.report.nodes import tabulate
from selfdistill.settings import CONFIG_LOADER_ARGS


def test_the_readmes_table_is_the_report_of_the_configured_rows(project):
    loader = OmegaConfigLoader(str(project / "conf"), env="base", **CONFIG_LOADER_ARGS)
    parameters = loader["parameters"]
    inputs = {}
    rows = ProjectConfig.from_parameters(parameters).rows
    for name, row in ((name, row) for name, row in rows.items() if row.paper_name == "dsd"):
        inputs[f"params:{name}"] = parameters[name]
        inputs |= {f"{name}.{sampling}.metrics": None for sampling in row.samplings}
    text = (project / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- table dsd -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == tabulate(**inputs).paper_table().strip()


def test_every_path_in_the_readmes_table_of_places_exists(project):
    text = (project / "README.md").read_text(encoding="utf-8")
    places = text.split("## Where is ...")[1].split("```")[0]
    for path in re.findall(r"`([\w/]+\.(?:py|yml)|docs/decisions/)`", places):
        assert (project / path).exists() or (project / "src/selfdistill" / path).exists(), path
