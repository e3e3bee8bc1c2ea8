"""Paper, ours, difference: the table of a paper, whether or not its rows have been run."""

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from selfdistill.base_config import as_written
from selfdistill.methods.config import PAPERS
from selfdistill.metrics.config import METRICS
from selfdistill.metrics.definitions import files_of, title_of
from selfdistill.pipelines.report.origin import origins
from selfdistill.pipelines.report.render import Grid, to_html, to_markdown, to_page, to_text
from selfdistill.pipelines.report.selected import HEADING, HEADS, Selected

# Made for small data; no paper has them.
_SMALL = ("fd_tiny", "class_accuracy")
_FIGURES = ("samplings", "deviations")  # of a row's `paper`
_ARROWS = {"lower": "↓", "higher": "↑"}
_OTHER_HEADING = "Not comparable with the paper: other data, samples, reference or metrics"
_ORIGIN_HEADING = "Where the numbers come from"
_PROTOCOL_HEADING = "How it was measured"
_NOTE = (
    "Difference is ours minus the paper's. A cell is empty where the paper gives no number or "
    "nobody has run the row."
)
_NO_RECIPE, _UNCERTAIN = "†", "‡"
_MARKED = {
    _NO_RECIPE: "Recipe not published: what the paper does not say of the row is chosen by us.",
    _UNCERTAIN: "It is not certain that the paper's numbers belong to this line.",
}


@dataclass(frozen=True)
class Entry:
    """One sampling of one row.

    Attributes:
        row: The row.
        sampling: The sampling.
        params: Parameters of the paper's network.
        paper: The paper's numbers by metric.
        paper_spread: Their standard deviations, where it gives them.
        ours: Our numbers by metric, measured as the paper's are: on the same data, of as many
            samples, against the same reference.
        other: Our other numbers by metric.
        baselines: By metric, the numbers to read `other` by, by name.
        spread: Standard deviation by metric over repeats; empty when there was one evaluation.
        protocol: How ours or `other` were measured; empty when nobody has run the row.
        parameters: All parameters of the row, as written.
    """

    row: str
    sampling: str
    params: int
    paper: Mapping[str, float]
    paper_spread: Mapping[str, float] = field(default_factory=dict)
    ours: Mapping[str, float] = field(default_factory=dict)
    other: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        row: str,
        sampling: str,
        parameters: Mapping[str, Any],
        result: Mapping[str, Any] | None,
    ) -> Self:
        """Put the paper's numbers and the evaluate stage's where they may stand.

        Args:
            row: The row.
            sampling: The sampling.
            parameters: The row's, as written.
            result: What the evaluate stage made; None: nobody has run the row.
        """
        paper = parameters["paper"]
        data = parameters.get("samplings", {}).get(sampling, {}).get("data") or parameters["data"]
        theirs = paper.get("datasets", {}).get(sampling, paper["data"])
        figures, spread = (paper.get(key, {}).get(sampling, {}) for key in _FIGURES)
        known = (row, sampling, paper["params"], figures, spread)
        if result is None:
            return cls(*known, parameters=parameters)
        metrics, protocol = result["metrics"], result["protocol"]
        files = [one["file"] or "unknown" for one in files_of(protocol["reference"]["published"])]
        named = paper["reference"] or ()
        expected = [named] if isinstance(named, str) else [*named]
        measured_on = (data, protocol["num_samples"], files)
        alike = measured_on == (theirs, paper["num_samples"], expected)
        comparable = [name for name in metrics if alike and name not in _SMALL]
        return cls(
            *known,
            ours={name: metrics[name] for name in comparable},
            other={name: value for name, value in metrics.items() if name not in comparable},
            baselines=result["baselines"],
            spread=result.get("std", {}),
            protocol=protocol,
            parameters=parameters,
        )

    @property
    def nfe(self) -> int | None:
        """Network evaluations per sample, as the sampler recorded them."""
        return self.protocol.get("samples", {}).get("nfe")

    @property
    def title(self) -> str:
        """The row, marked where the paper does not say how it was made."""
        published = self.parameters.get("paper", {}).get("recipe_published", True)
        return self.row if published else f"{self.row} {_NO_RECIPE}"

    @property
    def place(self) -> str:
        """The sampling, marked where it is not certain that the paper's numbers are its."""
        uncertain = self.sampling in self.parameters.get("paper", {}).get("uncertain", ())
        return f"{self.sampling} {_UNCERTAIN}" if uncertain else self.sampling

    @property
    def anchor(self) -> str:
        """Where its origin stands on the page."""
        return f"{self.row}.{self.sampling}"

    def compared(self, metric: str) -> tuple[float | None, float | None, float | None]:
        """Return the paper's number, ours, and ours minus the paper's."""
        paper, ours = self.paper.get(metric), self.ours.get(metric)
        if paper is None or ours is None:
            return paper, ours, None
        return paper, ours, round(ours - paper, 10)


@dataclass(frozen=True)
class Table:
    """The lines of a paper's table, those that nobody has run included.

    Attributes:
        entries: One for each sampling of each row, in order.
        selected: Rows whose checkpoint is the best of several, as far as they have been run.
    """

    entries: tuple[Entry, ...]
    selected: tuple[Selected, ...] = ()

    @classmethod
    def collect(cls, inputs: Mapping[str, Any]) -> Self:
        """Make the table from catalog entries.

        Args:
            inputs: By catalog name, "<row>.<sampling>.metrics": the evaluate stage's dict or None,
                in the order of the lines; "params:<row>": all parameters of the row; and
                "<row>.curves", of rows that are the best of several: their training log or None.
        """
        entries, selected = [], []
        for name, result in inputs.items():
            if name.endswith(".curves"):
                selected.append(Selected.of(name.removesuffix(".curves"), result))
            elif not name.startswith("params:"):
                row, sampling = name.removesuffix(".metrics").rsplit(".", 1)
                parameters = as_written(inputs[f"params:{row}"])
                entries.append(Entry.of(row, sampling, parameters, result))
        return cls(tuple(entries), tuple(one for one in selected if one is not None))

    def paper_table(self) -> str:
        """Return the paper's numbers beside ours, as a Markdown table alone."""
        return to_markdown(self._paper_grid())

    def markdown(self, title: str) -> str:
        """Return everything as a Markdown page.

        Args:
            title: Heading of the page; a key of `PAPERS` stands for that paper's.
        """
        parts = [f"# {_heading(title)}\n", f"{self._note()}\n", self.paper_table()]
        for heading, grid in self._sections():
            parts += [f"## {heading}\n", to_markdown(grid)]
        return "\n".join(parts)

    def csv(self) -> str:
        """Return both tables as one, numbers in full, unknown cells empty."""
        lines = []
        for entry in self.entries:
            line: dict[str, Any] = {"row": entry.row, "sampling": entry.sampling}
            if any(one.title != one.row for one in self.entries):
                line["recipe_published"] = entry.title == entry.row
            if any(one.place != one.sampling for one in self.entries):
                line["certain"] = entry.place == entry.sampling
            line |= {"params_paper": entry.params, "nfe": entry.nfe}
            for metric in self._paper_metrics():
                keys = (f"{metric}_paper", f"{metric}_ours", f"{metric}_difference")
                line |= zip(keys, entry.compared(metric), strict=True)
                if any(metric in one.paper_spread for one in self.entries):
                    line[f"{metric}_paper_std"] = entry.paper_spread.get(metric)
                if any(metric in one.ours and metric in one.spread for one in self.entries):
                    line[f"{metric}_std"] = (
                        entry.spread.get(metric) if metric in entry.ours else None
                    )
            for metric, names in self._other_columns().items():
                line[metric] = entry.other.get(metric)
                if any(metric in one.other and metric in one.spread for one in self.entries):
                    line[f"{metric}_other_std"] = _std(entry, metric, entry.other)
                others = entry.baselines.get(metric, {})
                line |= {f"{metric}_{name}": others.get(name) for name in names}
            lines.append(line)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def html(self, title: str, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
        """Return a page that needs neither network nor script; each number leads to its origin.

        Args:
            title: Heading of the page; a key of `PAPERS` stands for that paper's.
            pictures: Captions and links, relative to the page.
            links: What an origin leads to, by caption, with <row> and <sampling> in the places of
                the names; relative to the page.
        """
        sections = [("", f"<p>{html.escape(self._note())}</p>\n{to_html(self._paper_grid())}")]
        sections += [(heading, to_html(grid)) for heading, grid in self._sections()]
        sections.append((_ORIGIN_HEADING, origins(self.entries, links)))
        return to_page(_heading(title), sections, pictures)

    def text(self) -> str:
        """Return what has been measured, one number a line, narrow enough for a terminal."""
        ours = [
            (entry.title, entry.sampling, METRICS[metric].label, *_comparison(entry, metric))
            for entry in self.entries
            for metric in entry.ours
        ]
        other = [
            (entry.title, entry.sampling, METRICS[metric].label, *_other_numbers(entry, metric))
            for entry in self.entries
            for metric in entry.other
        ]
        blocks = []
        if ours:
            heads = ["row", "sampling", "metric", "paper", "ours", "difference"]
            blocks.append(to_text(_grid(heads, ours)))
        if other:
            heads = ["row", "sampling", "metric", "ours", "to compare with"]
            blocks.append(f"{_OTHER_HEADING}:\n{to_text(_grid(heads, other))}")
        if self.selected:
            blocks.append(f"{HEADING}:\n{to_text(self._selected_grid())}")
        return "\n".join(blocks) or "nobody has run a row of this table yet"

    def _note(self) -> str:
        shown = "".join(entry.title + entry.place for entry in self.entries)
        marks = (f"{mark} {what}" for mark, what in _MARKED.items() if mark in shown)
        return " ".join((_NOTE, *marks))

    def _sections(self) -> list[tuple[str, Grid]]:
        """Return what stands below the paper's table, each grid with its heading."""
        sections = []
        if self._other_entries():
            sections.append((_OTHER_HEADING, self._other_grid()))
        if self.selected:
            sections.append((HEADING, self._selected_grid()))
        if any(entry.protocol for entry in self.entries):
            sections.append((_PROTOCOL_HEADING, self._protocol_grid()))
        return sections

    def _paper_grid(self) -> Grid:
        metrics = self._paper_metrics()
        heads = [("", "row"), ("", "sampling"), ("", "params paper (M)"), ("", "NFE")]
        for metric in metrics:
            heads += [(_head(metric), name) for name in ("paper", "ours", "difference")]
        lines, shown = [], [entry for entry in self.entries if entry.paper or entry.ours]
        for entry in shown:
            cells = [cell for metric in metrics for cell in _comparison(entry, metric)]
            # A row shrunk to tiny data takes other steps: its NFE would mislead beside the paper's.
            nfe = _count(entry.nfe if entry.ours else None)
            lines.append((entry.title, entry.place, f"{entry.params / 1e6:.4g}", nfe, *cells))
        return Grid(tuple(heads), tuple(lines), 2, tuple(entry.anchor for entry in shown))

    def _other_grid(self) -> Grid:
        columns = self._other_columns()
        heads = [("", "row"), ("", "sampling"), ("", "NFE")]
        for metric, names in columns.items():
            heads += [(_head(metric), name.replace("_", " ")) for name in ("ours", *names)]
        lines = []
        for entry in self._other_entries():
            line = [entry.title, entry.place, _count(entry.nfe)]
            for metric, names in columns.items():
                others = entry.baselines.get(metric, {})
                ours, *baselines = _shown(
                    metric, [entry.other.get(metric), *map(others.get, names)]
                )
                line += (ours + (_spread(entry.spread, metric) if ours else ""), *baselines)
            lines.append(tuple(line))
        anchors = tuple(entry.anchor for entry in self._other_entries())
        return Grid(tuple(heads), tuple(lines), 2, anchors)

    def _protocol_grid(self) -> Grid:
        columns = {
            "quantisation": "quantisation",
            "num_samples": "samples",
        }
        lines = []
        for entry in (entry for entry in self.entries if entry.protocol):
            cells = [str(entry.protocol.get(key, "")) for key in columns]
            reference = _reference(entry.protocol["reference"])
            for name, extractor in entry.protocol["extractors"].items():
                weights = str(extractor["weights_sha256"])[:8]
                about = (name, weights, extractor["resize"], extractor.get("profile", ""))
                lines.append((entry.title, entry.sampling, *about, reference, *cells))
        heads = ["row", "sampling", "extractor", "weights", "resize", "profile", "reference"]
        return _grid([*heads, *columns.values()], lines, num_text=8)

    def _selected_grid(self) -> Grid:
        return _grid(HEADS, [one.line() for one in self.selected], num_text=2)

    def _paper_metrics(self) -> list[str]:
        """Return the metrics that the paper or we have numbers of, in the order of `METRICS`."""
        present = {metric for entry in self.entries for metric in (*entry.paper, *entry.ours)}
        return [metric for metric in METRICS if metric in present]

    def _other_columns(self) -> dict[str, list[str]]:
        """Return the metrics that are not comparable, and the names of their baselines."""
        columns: dict[str, dict[str, None]] = {}
        for entry in self.entries:
            for metric in entry.other:
                names = dict.fromkeys(entry.baselines.get(metric, {}))
                columns.setdefault(metric, {}).update(names)
        return {metric: list(names) for metric, names in columns.items()}

    def _other_entries(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.other]


def _reference(about: Mapping[str, Any]) -> str:
    """Return what samples were compared with."""
    return title_of(about["published"]) or f"{about['num_images']} images"


def _heading(title: str) -> str:
    return PAPERS.get(title, title)


def _head(metric: str) -> str:
    return f"{METRICS[metric].label} {_ARROWS[METRICS[metric].better]}"


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def _shown(metric: str, values: Iterable[float | None]) -> tuple[str, ...]:
    """Return numbers with the metric's usual digits, and nothing for what is not known."""
    digits = METRICS[metric].digits
    return tuple("" if value is None else format(value, digits) for value in values)


def _comparison(entry: Entry, metric: str) -> tuple[str, str, str]:
    *numbers, difference = entry.compared(metric)
    paper, ours = _shown(metric, numbers)
    if paper:
        paper += _spread(entry.paper_spread, metric)
    if ours:
        ours += _spread(entry.spread, metric)
    signed = "+" + METRICS[metric].digits
    return paper, ours, "" if difference is None else format(difference, signed)


def _std(entry: Entry, metric: str, numbers: Mapping[str, float]) -> float | None:
    """Return the standard deviation over repeats of one of the `numbers`."""
    return entry.spread.get(metric) if metric in numbers else None


def _spread(spread: Mapping[str, float], metric: str) -> str:
    """Return the standard deviation over repeats, where there were any."""
    if metric not in spread:
        return ""
    return f" ± {format(spread[metric], METRICS[metric].digits)}"


def _other_numbers(entry: Entry, metric: str) -> tuple[str, str]:
    others = entry.baselines.get(metric, {})
    ours, *numbers = _shown(metric, [entry.other[metric], *others.values()])
    pairs = zip(others, numbers, strict=True)
    return ours + _spread(entry.spread, metric), ", ".join(
        f"{name.replace('_', ' ')} {number}" for name, number in pairs
    )


def _grid(heads: Sequence[str], lines: Sequence[tuple[str, ...]], num_text: int = 3) -> Grid:
    return Grid(tuple(("", head) for head in heads), tuple(lines), num_text)
