"""From a teacher of many steps to one step, on real images at small scale.

    python benchmarks/one_step.py

For each seed, EDM's network of digits, the row edm_cifar10_cond of tiny, is trained anew; SiD and
SiDA distil it, and SiD2A goes on from SiD's best generator. Each row selects its best state by
fd_tiny on noise of its own; what is reported beside the teacher's many steps is measured on other
noise. How many images SiDA needs for SiD's best stands there too. All that was measured is
reported, also what did not come out. Students train half as long again as tiny's, at whose end one
of two seeds was still falling, and is yet. A seed takes three quarters of an hour of a core.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from page import about_run, head, table, write
from study import Study

COMMAND = "python benchmarks/one_step.py"
METRICS = ("fd_tiny", "class_accuracy")
# What they are like, by the names of ours.
LIKE = {
    "one_step_teacher": "edm_cifar10_cond",
    "one_step_sid": "sid_cifar10_cond_alpha_10",
    "one_step_sida": "sida_cifar10_cond",
    "one_step_sid2a": "sid2a_cifar10_cond_alpha_10",
}
TEACHER = "one_step_teacher"
LENGTH = 1.5  # times the images of tiny's
ROWS = {"SiD": "one_step_sid", "SiDA": "one_step_sida", "SiD2A": "one_step_sid2a"}


def rows_of(seed: int, folder: Path) -> Study:
    """Return the rows of a seed, not run yet."""
    study = Study(seed, folder, Path(__file__), METRICS)
    for name, model in LIKE.items():
        row = study.like(model)
        if name != TEACHER:
            row["start"] = {"row": TEACHER}
            row["train"]["total_nimg"] = int(LENGTH * row["train"]["total_nimg"])
        for sampling in row["samplings"].values():
            sampling |= {"num_images": 1_000, "repeats": 1}
        study.rows[name] = row
    study.rows[ROWS["SiD2A"]]["start"] = {"row": ROWS["SiD"], "teacher": TEACHER}
    return study


def best_of(trail: list[tuple[int, float]]) -> tuple[int, float]:
    """Return images seen and value of the best evaluation of a trail."""
    return min(trail, key=lambda one: one[1])


def first_below(trail: list[tuple[int, float]], value: float) -> int | None:
    """Return the images after which a trail is at a value or below; None: it never is."""
    return next((nimg for nimg, found in trail if found <= value), None)


def measure(options: argparse.Namespace) -> None:
    """Run all seeds, and write the page."""
    about = about_run()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        study = rows_of(seed, options.folder.absolute())
        study.run([TEACHER, ROWS["SiD"]])
        found.setdefault("teacher", []).append(study.found(TEACHER, "n18"))
        for line, name in ROWS.items():
            one = {**study.found(name, "one_step"), "trail": study.trail(name)}
            found.setdefault(line, []).append(one)
    page = ["# One step on digits\n", head(about, COMMAND) + "\n"]
    page += [
        f"Mean and standard deviation over {len(options.seeds)} seeds, 1,000 samples each. The "
        "teacher takes 18 steps, 35 evaluations; the others one.\n"
    ]
    for metric in METRICS:
        lines: list[list[Any]] = []
        for line, values in found.items():
            numbers = [one[metric] for one in values]
            lines.append([line, spread(numbers), ", ".join(f"{one:.3f}" for one in numbers)])
        page += table(f"{metric} | mean | by seed", lines)
    lines = []
    for k in range(len(options.seeds)):
        nimg, best = best_of(found["SiD"][k]["trail"])
        line = [options.seeds[k], f"{best:.3f}", f"{nimg:,}"]
        for name in ("SiDA", "SiD2A"):
            trail = found[name][k]["trail"]
            reached, (at, least) = first_below(trail, best), best_of(trail)
            line += [f"{reached:,}" if reached else "never", f"{least:.3f} at {at:,}"]
        lines.append(line)
    page += ["## Images until SiD's best\n"]
    page += ["By the evaluations on the way; those of SiD2A begin where SiD's best stands.\n"]
    heads = "SiD's best | at images | SiDA as good after | SiDA's best | SiD2A as good after"
    page += table(f"seed | {heads} | SiD2A's best", lines)
    page += remarks(options.seeds, found)
    page += ["## What was asked for\n", *verdicts(options.seeds, found)]
    write(options.results, "one_step_cpu", {"about": about, "metrics": found}, "\n".join(page))


def remarks(seeds: list[int], found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what the bests hide: SiD2A that is SiD's still, and trainings that were cut short."""
    same, falling = [], []
    for line in ROWS:
        for seed, one in zip(seeds, found[line], strict=True):
            values = [value for _, value in one["trail"]]
            if line == "SiD2A" and min(values) == values[0]:
                same.append(str(seed))
            if min(values) == values[-1]:
                falling.append(f"{line}, seed {seed}")
    text = (
        f"SiD2A's best is the generator that it starts as, which rests until then, in {len(same)}"
    )
    return [
        f"{text} of {len(seeds)} seeds ({', '.join(same) or 'none'}).",
        f"Best at their very end, so perhaps cut short: {'; '.join(falling) or 'none'}.\n",
    ]


def verdicts(seeds: list[int], found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return whether each generator knows the classes, is near its teacher, and was quick."""
    lines = []
    for line in ROWS:
        pairs = zip(found[line], found["teacher"], strict=True)
        ratios = [one["fd_tiny"] / teacher["fd_tiny"] for one, teacher in pairs]
        known = sum(one["class_accuracy"] >= 0.8 for one in found[line])
        near = sum(ratio <= 2 for ratio in ratios)
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append([line, f"{known} of {len(seeds)}", f"{near} of {len(seeds)}: {shown}"])
    heads = "class accuracy at least 0.8 | fd_tiny at most twice the teacher's, seeds and ratios"
    page = table(f"generator | {heads}", lines)
    shares = []
    for of_sid, of_sida in zip(found["SiD"], found["SiDA"], strict=True):
        nimg, best = best_of(of_sid["trail"])
        reached = first_below(of_sida["trail"], best)
        shares.append(None if reached is None else reached / nimg)
    quick = sum(share is not None and share <= 0.5 for share in shares)
    shown = ", ".join("never" if share is None else f"{share:.2f}" for share in shares)
    text = f"SiDA reached SiD's best in at most half of its images in {quick} of {len(seeds)} seeds"
    return [*page, f"{text}: {shown} of them.\n"]


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    """Run all seeds; write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("data/one_step"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds: a spread needs two or more")
    measure(options)


if __name__ == "__main__":
    main()
