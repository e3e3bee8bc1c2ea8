"""What a benchmark found, as a page and as JSON."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import about


def about_run() -> dict[str, Any]:
    """Return machine, date, commit and versions, and how busy the machine is before the run."""
    return about("pillow", "pyarrow", "numpy") | {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


def head(about: dict[str, Any], command: str) -> str:
    """Return the line that says when, where and by what the figures were taken."""
    edited = ", edited" * about["edited"]
    return (
        f"{about['date']}, commit {about['commit']}{edited}, {about['cpu']}, {about['cores']} "
        f"cores, load average {about['load_average']:.1f} before the run; `{command}`."
    )


def table(header: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a table and an empty line; the columns of the header are parted by bars."""
    marks = ["---"] + ["--:"] * header.count("|")
    lines = [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in ([header], marks, *lines)] + [""]


def write(folder: Path, name: str, result: dict[str, Any], page: str) -> None:
    """Write both files, and print the page."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)
