"""The plan as text, Markdown, HTML and CSV. Every cell is computed, none is measured."""

import csv
import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from selfdistill.pipelines.plan.config import PlanConfig
from selfdistill.pipelines.plan.estimate import STRATEGIES, DatasetPlan, RowPlan
from selfdistill.pipelines.report.render import Grid, to_html, to_markdown, to_page, to_text

Line = tuple[str, str, str, str, float | int | None]
"""Row or dataset, GPU or strategy or sampling, quantity, unit, value."""


@dataclass(frozen=True)
class PlanTable:
    """Rows and their datasets, planned.

    Attributes:
        rows: Plans by row.
        datasets: Plans by dataset.
        plan: The assumptions.
    """

    rows: Mapping[str, RowPlan]
    datasets: Mapping[str, DatasetPlan]
    plan: PlanConfig

    def text(self) -> str:
        """Return it for a terminal."""
        parts = [f"{heading}\n{to_text(_flat(grid))}" for heading, grid in self._sections()]
        return "\n\n".join([self._note(), *parts])

    def markdown(self, title: str) -> str:
        """Return it as a Markdown page."""
        parts = [f"## {heading}\n\n{to_markdown(grid)}" for heading, grid in self._sections()]
        return "\n".join([f"# {title}\n", f"{self._note()}\n", *parts])

    def html(self, title: str, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
        """Return it as a page; `pictures` and `links` map captions to places.

        Nothing has been run, so there is nothing that a number could lead to: links are not shown.
        """
        note = f"<p>{html.escape(self._note())}</p>"
        sections = [(heading, to_html(grid)) for heading, grid in self._sections()]
        return to_page(title, [("", note), *sections], pictures)

    def csv(self) -> str:
        """Return every number in a line of its own, unrounded."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "of", "quantity", "unit", "planned"))
        writer.writerows(line for line in self._lines())
        return file.getvalue()

    def _note(self) -> str:
        plan = self.plan
        return (
            f"Planned, not measured: {plan.num_gpus} GPUs a row, utilisation "
            f"{plan.utilisation:.0%} of the data sheet's dense peak (assumed), "
            f"{plan.usable_memory:.0%} of the memory usable (assumed). GB are 10^9 bytes."
        )

    def _sections(self) -> Iterator[tuple[str, Grid]]:
        yield "Work", self._work()
        yield f"GPU hours, {self.plan.utilisation:.0%} of the peak", self._hours()
        yield "Memory of a GPU, GB", self._memory()
        yield "Largest micro-batch that fits", self._fits()
        yield "Disk of a row, GB", self._row_disk()
        yield "Disk of a dataset, GB", self._dataset_disk()

    def _work(self) -> Grid:
        heads = (
            "row", "trained, M", "sampling, M", "images, M", "TFLOP/image", "teacher",
            "TFLOP/update", "EFLOP", "TFLOP/sample",
        )  # fmt: skip
        lines = []
        for name, row in self.rows.items():
            used, samples = None, ""
            if row.sampling is not None:
                used = row.sampling.num_parameters
                samples = ", ".join(
                    f"{sampling} {_number(flops, 1e12)}"
                    for sampling, flops in row.sampling.flops.items()
                )
            cells = (
                (row.step.num_trained, 1e6), (used, 1e6), (row.num_images, 1e6),
                (row.loss_flops, 1e12), (row.teacher_flops or None, 1e12),
                (row.step.update_flops, 1e12), (row.total_flops, 1e18),
            )  # fmt: skip
            lines.append((name, *(_number(*cell) for cell in cells), samples))
        return _grid(heads, lines)

    def _hours(self) -> Grid:
        heads = [("", "row or dataset")]
        heads += [(gpu, what) for gpu in self.plan.hardware for what in ("train", "sample")]
        lines = [
            (name, *(_number(hours) for both in row.hours.values() for hours in both))
            for name, row in self.rows.items()
        ]
        for name, dataset in self.datasets.items():
            if dataset.feature_hours:
                hours = (_number(value) for value in dataset.feature_hours.values())
                cells = (cell for value in hours for cell in (value, ""))
                lines.append((f"{name}, features", *cells))
        return Grid(tuple(heads), tuple(lines), 1)

    def _memory(self) -> Grid:
        heads = (
            "row", "micro-batch", "weights", "frozen", "gradients", "states", "activations",
            *STRATEGIES,
        )  # fmt: skip
        lines = []
        for name, row in self._trained():
            step = row.step
            parts = (
                step.weights, step.frozen, step.gradients, step.states,
                max(0, step.backward - step.held), *row.memory.values(),
            )  # fmt: skip
            lines.append((name, str(step.size), *(_number(part, 1e9) for part in parts)))
        return _grid(heads, lines)

    def _fits(self) -> Grid:
        heads = [("", "row"), ("", "micro-batch")]
        heads += [(gpu, strategy) for gpu in self.plan.hardware for strategy in STRATEGIES]
        lines = [
            (
                name,
                str(row.step.size),
                *(str(n) if n else "none" for by in row.fits.values() for n in by.values()),
            )
            for name, row in self._trained()
        ]
        return Grid(tuple(heads), tuple(lines), 1)

    def _trained(self) -> Iterator[tuple[str, RowPlan]]:
        return ((name, row) for name, row in self.rows.items() if row.num_steps)

    def _row_disk(self) -> Grid:
        lines = []
        for name, row in self.rows.items():
            sizes = (row.step.checkpoint, row.step.checkpoint + row.step.states, row.samples)
            lines.append((name, row.data, *(_number(size, 1e9) for size in sizes)))
        return _grid(("row", "data", "checkpoint", "state", "samples"), lines, num_text=2)

    def _dataset_disk(self) -> Grid:
        lines = []
        for name, one in self.datasets.items():
            number = "" if one.num_images is None else f"{one.num_images:,}"
            sizes = (one.images, one.features, one.latents)
            origin = "made" if one.is_made else "" if one.num_images is None else "expected"
            lines.append((name, origin, number, *(_number(size, 1e9) for size in sizes)))
        heads = ("dataset", "number is", "images", "images, GB", "features", "latents")
        return _grid(heads, lines, num_text=2)

    def _lines(self) -> Iterator[Line]:
        for name, row in self.rows.items():
            step, sampling = row.step, row.sampling
            yield name, "", "trained parameters", "", step.num_trained
            yield name, "", "images", "", row.num_images
            yield name, "", "steps", "", row.num_steps
            yield name, "", "loss and gradient of an image", "FLOP", row.loss_flops
            yield name, "", "teacher at work, of an image", "FLOP", row.teacher_flops
            yield name, "", "update of a step and a rank", "FLOP", step.update_flops
            yield name, "", "training", "FLOP", row.total_flops
            if sampling is not None:
                yield name, "", "parameters at sampling", "", sampling.num_parameters
                for one, flops in sampling.flops.items():
                    yield name, one, "sample", "FLOP", flops
            for gpu, (training, drawing) in row.hours.items():
                yield name, gpu, "training", "GPU hours", training
                yield name, gpu, "sampling", "GPU hours", drawing
            for quantity in ("weights", "frozen", "gradients", "states", "checkpoint"):
                yield name, "", quantity, "bytes", getattr(step, quantity)
            yield name, "", "micro-batch", "images", step.size
            for strategy, size in row.memory.items():
                yield name, strategy, "memory of a GPU", "bytes", size
            for gpu, by in row.fits.items():
                for strategy, number in by.items():
                    yield name, f"{gpu}, {strategy}", "largest micro-batch", "images", number
            yield name, "", "samples on disk", "bytes", row.samples
        for name, data in self.datasets.items():
            yield name, "", "images", "", data.num_images
            for kind in ("images", "features", "latents"):
                yield name, kind, "disk", "bytes", getattr(data, kind)
            for gpu, hours in data.feature_hours.items():
                yield name, gpu, "features", "GPU hours", hours


def _grid(heads: tuple[str, ...], lines: list[tuple[str, ...]], num_text: int = 1) -> Grid:
    return Grid(tuple(("", head) for head in heads), tuple(lines), num_text)


def _flat(grid: Grid) -> Grid:
    """Return the grid with each group in the name of its columns."""
    heads = tuple(("", f"{group} {name}".strip()) for group, name in grid.heads)
    return Grid(heads, grid.lines, grid.num_text)


def _number(value: float | None, unit: float = 1) -> str:
    """Return a number with three figures or all of its whole ones; empty for None."""
    if value is None:
        return ""
    value /= unit
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
