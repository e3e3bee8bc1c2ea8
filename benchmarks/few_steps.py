"""Does a short fine-tuning help a few-step sampler, on real images at small scale?

    python benchmarks/few_steps.py

The rows of tiny on dit_xl_256, a DiT of digits, trained anew for each seed, then tuned by at most
5 % of its images: SSD and iSSD for 4 and for 10 steps, and as much ordinary training. Beside them
the base as it is, with DDIM and with PLMS-2. All that was measured is reported, also what did not
help. A seed takes about ten minutes of a core.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from page import about_run, head, table, write

STEPS = (4, 10)
BASE = "dit_xl_256"
LINES = {
    "base": {n: f"{BASE}.n{n}" for n in STEPS},
    "base, PLMS-2": {n: f"{BASE}.plms2_n{n}" for n in STEPS},
    "continued training": {n: f"continued_{BASE}.n{n}" for n in STEPS},
    "SSD": {n: f"ssd_{BASE}_n{n}.n{n}" for n in STEPS},
    "iSSD": {n: f"issd_{BASE}_n{n}.n{n}" for n in STEPS},
}
METRICS = ("fd_tiny", "class_accuracy")
ROWS = list(
    dict.fromkeys(name.partition(".")[0] for line in LINES.values() for name in line.values())
)


def run_seed(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Train and tune with one seed, and return the metrics by sampling."""
    conf, data = folder / "conf", folder / "data"
    if not conf.is_dir():
        shutil.copytree("conf", conf, ignore=shutil.ignore_patterns("local"))
        (conf / "local").mkdir()
        for file, changes in (
            ("tiny/globals.yml", {"data_root": str(data)}),
            ("tiny/parameters/ssd.yml", {row: {"train": {"seed": seed}} for row in ROWS}),
        ):
            values = yaml.safe_load((conf / file).read_text(encoding="utf-8"))
            for key, change in changes.items():
                if isinstance(change, dict):
                    values[key]["train"] = {**values[key]["train"], **change["train"]}
                else:
                    values[key] = change
            (conf / file).write_text(yaml.safe_dump(values), encoding="utf-8")
    reports = data / "08_reporting"
    # The base first, and once: a run of what starts from it must not train it again.
    for rows in ([BASE], [row for row in ROWS if row != BASE]):
        command = [
            str(Path(sys.executable).parent / "kedro"), "run", "--env=tiny",
            f"--conf-source={conf}", f"--pipelines={','.join(rows)}",
        ]  # fmt: skip
        last = [
            name for line in LINES.values() for name in line.values() if name.startswith(rows[-1])
        ]
        if not (reports / last[-1].replace(".", "/") / "metrics.json").is_file():
            environment = {**os.environ, "DO_NOT_TRACK": "1"}
            subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    return {
        name: json.loads((reports / name.replace(".", "/") / "metrics.json").read_text())["metrics"]
        for line in LINES.values()
        for name in line.values()
    }


def main() -> None:
    """Run all seeds and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("data/few_steps"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    about = about_run()
    found = {
        seed: run_seed(seed, options.folder.absolute() / str(seed)) for seed in range(options.seeds)
    }
    page = ["# Few steps on digits\n", head(about, "python benchmarks/few_steps.py") + "\n"]
    page += [
        f"Mean and standard deviation over {options.seeds} seeds of training and tuning, 500 "
        "samples each, guidance 1.5. The\ntuned rows saw 6,400 images, 5 % of the base's 128,000.\n"
    ]
    for metric in METRICS:
        rows = []
        for caption, line in LINES.items():
            cells: list[object] = [caption]
            for n in STEPS:
                values = [found[seed][line[n]][metric] for seed in found]
                cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
                cells.append(", ".join(f"{value:.3f}" for value in values))
            rows.append(cells)
        heads = " | ".join(f"{n} steps | by seed" for n in STEPS)
        page += table(f"{metric} | {heads}", rows)
    name = "few_steps_cpu"
    write(options.results, name, {"about": about, "metrics": found}, "\n".join(page))


if __name__ == "__main__":
    main()
