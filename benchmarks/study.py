"""Rows of tiny, changed, run apart from the project's data, once for each seed."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selfdistill.config_loader import LOADER_ARGS, ProjectConfigLoader
from selfdistill.files import fingerprint


class Study:
    """Rows made from those of tiny, and what came out of them.

    Args:
        seed: Of all trainings.
        folder: For conf and data, apart by seed, code and conf.
        script: The benchmark, which is part of the code.
        metrics: What is reported.

    Attributes:
        rows: Those that are run, by name.
    """

    def __init__(self, seed: int, folder: Path, script: Path, metrics: Sequence[str]) -> None:
        files = [script, *Path("src").rglob("*.py"), *Path("conf").glob("[bt]*/**/*.yml")]
        code = fingerprint(*(file.read_text(encoding="utf-8") for file in sorted(files)))
        self.seed, self.folder, self.metrics = seed, folder / f"{seed}-{code[:8]}", metrics
        loader = ProjectConfigLoader("conf", env="tiny", **LOADER_ARGS)
        self.parameters = loader["parameters"]
        self.rows: dict[str, Any] = {}

    def like(self, name: str) -> Any:
        """Return a row of tiny, without the paper's numbers, with the study's seed."""
        row = copy.deepcopy(self.parameters[name])
        row["paper"] = {**row["paper"], "samplings": {}, "deviations": {}}
        row["train"]["seed"] = self.seed
        return row

    def run(self, first: Sequence[str] = ()) -> None:
        """Run what has no numbers yet.

        Args:
            first: Rows that others start from, in order, each in a run of its own.
        """
        conf = self.folder / "conf"
        shutil.rmtree(conf, ignore_errors=True)
        shutil.copytree("conf", conf, ignore=shutil.ignore_patterns("local"))
        (conf / "local").mkdir()
        _change(conf / "tiny" / "globals.yml", {"data_root": str(self.folder / "data")})
        text = yaml.safe_dump(self.rows)
        (conf / "tiny" / "parameters" / "study.yml").write_text(text, encoding="utf-8")
        for rows in ([name] for name in first):
            self._run(rows, conf)
        self._run([name for name in self.rows if name not in first], conf)

    def _run(self, rows: Sequence[str], conf: Path) -> None:
        missing = [row for row in rows if not self._is_done(row)]
        if not missing:
            return
        command = [
            str(Path(sys.executable).parent / "kedro"), "run", "--env=tiny",
            f"--conf-source={conf}", f"--pipelines={','.join(missing)}",
        ]  # fmt: skip
        environment = {**os.environ, "DO_NOT_TRACK": "1"}
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)

    def _metrics(self, row: str, sampling: str) -> Path:
        return self.folder / "data" / "08_reporting" / row / sampling / "metrics.json"

    def _is_done(self, row: str) -> bool:
        return all(self._metrics(row, one).is_file() for one in self.rows[row]["samplings"])

    def found(self, row: str, sampling: str) -> dict[str, float]:
        """Return the metrics of a sampling."""
        metrics = json.loads(self._metrics(row, sampling).read_text())["metrics"]
        return {name: metrics[name] for name in self.metrics}

    def trail(self, row: str) -> list[tuple[int, float]]:
        """Return images seen and value of each evaluation by which a row selected its best."""
        about = self.folder / "data" / "06_models" / row / "checkpoint" / "checkpoint.json"
        return [(nimg, value) for nimg, value in json.loads(about.read_text())["selected"]["trail"]]


def _change(file: Path, changes: Mapping[str, Any]) -> None:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
