"""What Kedro and DVC add: a stage by `kedro run` beside the same work in a bare process, and a
`dvc repro` that has nothing to do.

    python benchmarks/overhead.py

Needs the samples of the tiny row dsd_b (`make demo`), and for DVC that all of tiny has been made by
`dvc repro pipelines.dvc/tiny/dvc.yaml`. Runs are interleaved; seconds are of the whole process.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from page import about_run, head, table, write

REPEATS = 7
SAMPLES = "data/tiny/07_model_output/dsd_b/plain/samples"
BARE = f"""
from selfdistill.io.report import PictureDataset
from selfdistill.io.shards import ShardsDataset
from selfdistill.pipelines.sample.nodes import draw_grid
picture = draw_grid(ShardsDataset(path={SAMPLES!r}).load())
PictureDataset(filepath="data/tiny/scratch/grid.png").save(picture)
"""
BIN = Path(sys.executable).parent
COMMANDS = {
    "bare": [sys.executable, "-c", BARE],
    "kedro run": [
        str(BIN / "kedro"), "run", "--env=tiny", "--pipelines=dsd_b",
        "--nodes=dsd_b.plain.draw_grid",
    ],
    "dvc repro, nothing to do": [str(BIN / "dvc"), "repro", "-q", "pipelines.dvc/tiny/dvc.yaml"],
}  # fmt: skip


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    about = about_run()
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            found[name].append(seconds_of(command))
    medians = {name: statistics.median(times) for name, times in found.items()}
    rows: list[tuple[str, object, object, object]] = [
        (name, medians[name], min(times), max(times)) for name, times in found.items()
    ]
    rows.append(("what kedro run adds", medians["kedro run"] - medians["bare"], "", ""))
    page = "\n".join(
        [
            "# What Kedro and DVC add",
            "",
            head(about, "python benchmarks/overhead.py"),
            f"Seconds of whole processes, median of {REPEATS} interleaved runs.",
            "",
            *table("process | seconds | least | most", rows),
        ]
    )
    write(options.results, "overhead", {"about": about, "seconds": found}, page)


if __name__ == "__main__":
    main()
