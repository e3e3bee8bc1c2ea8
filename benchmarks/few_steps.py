"""Does a short fine-tuning help a few-step sampler, on real images at small scale?

    python benchmarks/few_steps.py --sweep       # the strengths, on a seed of their own
    python benchmarks/few_steps.py               # what they give on three others

A DiT of digits, the row dit_xl_256 of tiny, is trained anew for each seed, then tuned by 5 % of its
images: SSD and iSSD for 4 and for 10 steps, and as much ordinary training. Beside them stands the
base as it is, with DDIM and with PLMS-2; everything is sampled with and without guidance. All that
was measured is reported, also what did not help. A sweep takes three quarters of an hour of a core,
a seed a quarter.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from page import about_run, head, table, write
from study import Study

STEPS = (4, 10)
SCALES = {"unguided": 1.0, "guided": 1.5}
BASE = "dit_xl_256"
OWN_BASE = "few_steps_base"  # as long, and sampled otherwise
METRICS = ("fd_tiny", "class_accuracy")
SWEEP_SEED = 100

RATES = (1e-4, 3e-4)
CONTROL_RATES = (1e-5, 3e-5, 1e-4)
SWEEP = "few_steps_sweep_cpu"
CONTROL = "continued training"
COMMAND = "python benchmarks/few_steps.py"

Target = dict[str, Any]


def explicit(weight: float | str) -> Target:
    """Return the target of SSD."""
    return {"form": "explicit", "weight": weight}


def implicit(mix_prev: float, site: str) -> Target:
    """Return the target of iSSD."""
    return {"form": "implicit", "mix_prev": mix_prev, "site": site}


def swept() -> dict[str, list[Target]]:
    """Return the targets that are tried."""
    sites = {"branch": (0.1, 0.2, 0.33), "gated": (0.05, 0.1, 0.25), "output": (0.25, 0.33)}
    return {
        "SSD": [explicit(weight) for weight in (0.1, 0.2, 0.33, "auto")],
        "iSSD": [implicit(mix, site) for site, mixes in sites.items() for mix in mixes],
    }


class FewSteps(Study):
    """A DiT of digits, and what it is tuned by."""

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed, folder, Path(__file__), METRICS)
        self.rows[OWN_BASE] = self._base()

    @staticmethod
    def _samplings(one: Mapping[str, Any], steps: tuple[int, ...]) -> dict[str, Any]:
        return {
            f"{scale}_n{n}": {**one, "num_steps": n, "guidance": guidance, "num_images": 1_000}
            for scale, guidance in SCALES.items()
            for n in steps
        }

    def _base(self) -> Any:
        row = self.like(BASE)
        samplings = self._samplings(row["samplings"]["n10"], (*STEPS, 50))
        plms2 = self._samplings(row["samplings"]["plms2_n10"], STEPS)
        row["samplings"] = {**samplings, **{f"plms2_{name}": one for name, one in plms2.items()}}
        return row

    def control(self, rate: float) -> str:
        """Add ordinary training, and return the row's name."""
        row = self.like(f"continued_{BASE}")
        row["samplings"] = self._samplings(row["samplings"]["n10"], STEPS)
        return self._add("control", row, rate)

    def tuned(self, n: int, target: Target, rate: float) -> str:
        """Add SSD or iSSD for n steps, and return the row's name."""
        row = self.like(f"issd_{BASE}_n{n}")
        row["method"]["target"] = target
        row["samplings"] = self._samplings(row["samplings"][f"n{n}"], (n,))
        words = "_".join(str(value).replace(".", "") for value in target.values())
        return self._add(f"{words}_n{n}", row, rate)

    def _add(self, name: str, row: Any, rate: float) -> str:
        row["start"] = {"row": OWN_BASE}
        row["train"]["optimizer"]["lr"] = rate
        name = f"{name}_lr{rate:.0e}".replace("-", "")
        self.rows[name] = row
        return name


def sweep(options: argparse.Namespace) -> None:
    """Try all targets and rates on one seed."""
    about = about_run()
    study = FewSteps(SWEEP_SEED, options.folder.absolute())
    tried: list[dict[str, Any]] = []
    for n in STEPS:
        for rate in CONTROL_RATES:
            one = {"line": CONTROL, "n": n, "target": None, "rate": rate}
            tried.append(one | {"row": study.control(rate)})
        for line, targets in swept().items():
            for target, rate in itertools.product(targets, RATES):
                one = {"line": line, "n": n, "target": target, "rate": rate}
                tried.append(one | {"row": study.tuned(n, target, rate)})
    study.run([OWN_BASE])
    for one in tried:
        samplings = {scale: f"{scale}_n{one['n']}" for scale in SCALES}
        one["metrics"] = {scale: study.found(one["row"], samplings[scale]) for scale in SCALES}
    base = {
        f"{scale}_n{n}": study.found(OWN_BASE, f"{scale}_n{n}") for scale in SCALES for n in STEPS
    }
    page = ["# Few steps on digits: the sweep\n", head(about, COMMAND + " --sweep") + "\n"]
    page += [f"fd_tiny of seed {SWEEP_SEED}, 1,000 samples each.\n"]
    rows: list[list[Any]] = [
        ["base", ""] + [base[f"{scale}_n{n}"]["fd_tiny"] for scale in SCALES for n in STEPS]
    ]
    cells: dict[tuple[str, float], dict[int, Any]] = {}
    for one in tried:
        words = [str(value) for key, value in (one["target"] or {}).items() if key != "form"]
        cell = cells.setdefault((" ".join([one["line"], *words]), one["rate"]), {})
        cell[one["n"]] = one["metrics"]
    for (caption, rate), cell in cells.items():
        values = [cell[n][scale]["fd_tiny"] for scale in SCALES for n in STEPS]
        rows.append([caption, f"{rate:.0e}", *values])
    heads = " | ".join(f"{scale}, {n} steps" for scale in SCALES for n in STEPS)
    page += table(f"| learning rate | {heads}", rows)
    write(options.results, SWEEP, {"about": about, "base": base, "tried": tried}, "\n".join(page))


def best(tried: list[dict[str, Any]], line: str, n: int, scale: str) -> dict[str, Any]:
    """Return what the sweep found of a line, for n steps and a scale."""
    some = [one for one in tried if one["line"] == line and one["n"] == n]
    return min(some, key=lambda one: _error(one, scale))


def _error(one: dict[str, Any], scale: str) -> float:
    return float(one["metrics"][scale]["fd_tiny"])


def measure(options: argparse.Namespace) -> None:
    """Tune with what the sweep found, on seeds that it has not seen."""
    about = about_run()
    tried = json.loads((options.results / f"{SWEEP}.json").read_text())["tried"]
    places = [(scale, n) for scale in SCALES for n in STEPS]
    chosen = {
        (line, *place): best(tried, line, place[1], place[0])
        for line in (CONTROL, *swept())
        for place in places
    }
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(options.seeds):
        study = FewSteps(seed, options.folder.absolute())
        rows = {
            (line, *place): study.control(one["rate"])
            if one["target"] is None
            else study.tuned(one["n"], one["target"], one["rate"])
            for (line, *place), one in chosen.items()
        }
        study.run([OWN_BASE])
        for scale, n in places:
            place = f"{scale}_n{n}"
            cell = found.setdefault(place, {})
            cell.setdefault("base", []).append(study.found(OWN_BASE, place))
            cell.setdefault("base, PLMS-2", []).append(study.found(OWN_BASE, f"plms2_{place}"))
            for line in (CONTROL, *swept()):
                cell.setdefault(line, []).append(study.found(rows[line, scale, n], place))
            cell.setdefault("base, 50 steps", []).append(study.found(OWN_BASE, f"{scale}_n50"))
    page = ["# Few steps on digits\n", head(about, COMMAND) + "\n"]
    page += [
        f"Mean and standard deviation over {options.seeds} seeds of training and tuning, 1,000 "
        "samples each. The tuned rows\nsaw 6,400 images, 5 % of the base's 128,000, at the target "
        f"and rate of the least fd_tiny on seed {SWEEP_SEED} (`{SWEEP}.md`).\nGain: how much lower "
        "the better of SSD and iSSD, as that seed told, is than the base and the continued "
        "training, seed by\nseed.\n"
    ]
    for scale in SCALES:
        page += [f"## {scale.capitalize()}, guidance {SCALES[scale]}\n"]
        for metric in METRICS:
            page += _table_of(metric, {n: found[f"{scale}_n{n}"] for n in STEPS})
        winners = {
            n: min(swept(), key=lambda line: _error(chosen[line, scale, n], scale)) for n in STEPS
        }
        page += _gains({n: found[f"{scale}_n{n}"] for n in STEPS}, winners)
    lines = [
        [scale, n, line, json.dumps(one["target"]), f"{one['rate']:.0e}"]
        for (line, scale, n), one in chosen.items()
    ]
    page += ["## What the sweep chose\n", *table("| steps | line | target | rate", lines)]
    write(options.results, "few_steps_cpu", {"about": about, "metrics": found}, "\n".join(page))


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _table_of(metric: str, cells: dict[int, dict[str, list[dict[str, float]]]]) -> list[str]:
    rows: list[list[Any]] = []
    for line in cells[STEPS[0]]:
        row: list[Any] = [line]
        for n in STEPS:
            values = [one[metric] for one in cells[n][line]]
            row += [_spread(values), ", ".join(f"{value:.3f}" for value in values)]
        rows.append(row)
    return table(f"{metric} | " + " | ".join(f"{n} steps | by seed" for n in STEPS), rows)


def _gains(
    cells: dict[int, dict[str, list[dict[str, float]]]], winners: Mapping[int, str]
) -> list[str]:
    """Return how far SSD or iSSD is below the base and the control."""
    rows: list[list[Any]] = []
    values = {
        n: {line: [one["fd_tiny"] for one in cell] for line, cell in cells[n].items()}
        for n in STEPS
    }
    for n in STEPS:
        winner = winners[n]
        row: list[Any] = [f"{n} steps: {winner}"]
        for other in ("base", CONTROL):
            pairs = zip(values[n][other], values[n][winner], strict=True)
            row.append(_spread([theirs - ours for theirs, ours in pairs]))
        rows.append(row)
    return table(f"gain in fd_tiny | over the base | over the {CONTROL}", rows)


def main() -> None:
    """Sweep, or run all seeds; write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("data/few_steps"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: a spread needs two or more")
    make: Callable[..., None] = sweep if options.sweep else measure
    make(options)


if __name__ == "__main__":
    main()
