"""Paper, ours, difference: the table of a paper, whether or not its rows have been run."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from selfdistill.pipelines.report.render import Grid, to_html, to_markdown, to_page, to_text

# Only what this extractor measured may stand beside a paper's number.
_PAPER_EXTRACTOR = "inception_2015"
_LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "precision": "Precision",
    "recall": "Recall",
}
_DECIMALS = {
    "fid": ".2f",
    "sfid": ".2f",
    "inception_score": ".1f",
    "precision": ".3f",
    "recall": ".3f",
    "class_accuracy": ".3f",
}
_TINY_HEADING = "Measured on the tiny data, not comparable with the paper"
_NOTE = (
    "<p>Difference is ours minus the paper's. A cell is empty where the paper gives no number or "
    "nobody has run the row.</p>\n"
)


@dataclass(frozen=True)
class Entry:
    """One sampling of one row.

    Attributes:
        row: The row.
        sampling: The sampling.
        paper: The paper's numbers by metric.
        ours: Our numbers by metric, measured as the paper measures.
        tiny: Our numbers by metric, measured by any other extractor.
        baselines: The numbers to read `tiny` by; a name starts with its metric's.
        protocol: How ours or `tiny` were measured; empty when nobody has run the row.
    """

    row: str
    sampling: str
    paper: Mapping[str, float]
    ours: Mapping[str, float] = field(default_factory=dict)
    tiny: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, row: str, sampling: str, paper: Mapping[str, float], result: Mapping[str, Any] | None
    ) -> Self:
        """Put a result of the evaluate stage where it may stand; None: nobody has run the row."""
        if result is None:
            return cls(row, sampling, paper)
        metrics, protocol = result["metrics"], result["protocol"]
        if protocol["extractor"] == _PAPER_EXTRACTOR:
            return cls(row, sampling, paper, ours=metrics, protocol=protocol)
        return cls(
            row, sampling, paper, tiny=metrics, baselines=result["baselines"], protocol=protocol
        )

    @property
    def nfe(self) -> int | None:
        """Network evaluations per sample, as the sampler recorded them."""
        return self.protocol.get("samples", {}).get("nfe")

    def compared(self, metric: str) -> tuple[float | None, float | None, float | None]:
        """Return the paper's number, ours, and ours minus the paper's."""
        paper, ours = self.paper.get(metric), self.ours.get(metric)
        if paper is None or ours is None:
            return paper, ours, None
        return paper, ours, round(ours - paper, 10)

    def baselines_of(self, metric: str) -> dict[str, float]:
        """Return the baselines of a metric by what is left of their names, e.g. "noise"."""
        start = f"{metric}_"
        return {
            name.removeprefix(start): value
            for name, value in self.baselines.items()
            if name.startswith(start)
        }


@dataclass(frozen=True)
class Table:
    """The lines of a paper's table, those that nobody has run included.

    Attributes:
        entries: One for each sampling of each row, in order.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def collect(cls, inputs: Mapping[str, Any]) -> Self:
        """Make the table from catalog entries.

        Args:
            inputs: By catalog name, "<row>.<sampling>.metrics": the evaluate stage's dict or None,
                in the order of the lines; and "params:<row>.paper": {sampling: {metric: number}}.

        Raises:
            ValueError: If a paper's numbers are not a mapping; the message names row and sampling.
        """
        entries = []
        for name, result in inputs.items():
            if name.startswith("params:"):
                continue
            row, sampling = name.removesuffix(".metrics").rsplit(".", 1)
            paper = inputs[f"params:{row}.paper"].get(sampling) or {}
            if not isinstance(paper, Mapping):
                raise ValueError(
                    f"{row}: paper.{sampling} must map metrics to numbers, got {paper!r}"
                )
            numbers = {key: float(value) for key, value in paper.items() if value is not None}
            entries.append(Entry.of(row, sampling, numbers, result))
        return cls(tuple(entries))

    def markdown(self) -> str:
        """Return the paper's table and, if something was measured on tiny data, a second one."""
        text = to_markdown(self._paper_grid())
        if self._tiny_entries():
            text += f"\n{_TINY_HEADING}:\n\n{to_markdown(self._tiny_grid())}"
        return text

    def csv(self) -> str:
        """Return both tables as one, numbers in full, unknown cells empty."""
        lines = []
        for entry in self.entries:
            line: dict[str, Any] = {"row": entry.row, "sampling": entry.sampling, "nfe": entry.nfe}
            for metric in self._paper_metrics():
                keys = (f"{metric}_paper", f"{metric}_ours", f"{metric}_difference")
                line |= zip(keys, entry.compared(metric), strict=True)
            for metric, names in self._tiny_columns().items():
                line[metric] = entry.tiny.get(metric)
                others = entry.baselines_of(metric)
                line |= {f"{metric}_{name}": others.get(name) for name in names}
            lines.append(line)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def html(self, title: str, pictures: Mapping[str, str]) -> str:
        """Return a page that needs neither network nor script.

        Args:
            title: Heading of the page.
            pictures: Captions and links, relative to the page.
        """
        sections = [("", _NOTE + to_html(self._paper_grid()))]
        if self._tiny_entries():
            sections.append((_TINY_HEADING, to_html(self._tiny_grid())))
        if any(entry.protocol for entry in self.entries):
            sections.append(("How it was measured", to_html(self._protocol_grid())))
        return to_page(title, sections, pictures)

    def text(self) -> str:
        """Return what has been measured, one number a line, narrow enough for a terminal."""
        ours = [
            (entry.row, entry.sampling, _label(metric), *_comparison(entry, metric))
            for entry in self.entries
            for metric in entry.ours
        ]
        tiny = [
            (entry.row, entry.sampling, metric, *_shown(metric, [value]), _baselines(entry, metric))
            for entry in self.entries
            for metric, value in entry.tiny.items()
        ]
        blocks = []
        if ours:
            heads = ["row", "sampling", "metric", "paper", "ours", "difference"]
            blocks.append(to_text(_grid(heads, ours)))
        if tiny:
            heads = ["row", "sampling", "metric", "ours", "to compare with"]
            blocks.append(f"{_TINY_HEADING}:\n{to_text(_grid(heads, tiny))}")
        return "\n".join(blocks) or "nobody has run a row of this table yet"

    def _paper_grid(self) -> Grid:
        metrics = self._paper_metrics()
        heads = [("", "row"), ("", "sampling"), ("", "NFE")]
        for metric in metrics:
            heads += [(_label(metric), name) for name in ("paper", "ours", "difference")]
        lines = []
        for entry in self.entries:
            cells = [cell for metric in metrics for cell in _comparison(entry, metric)]
            # A row shrunk to tiny data takes other steps: its NFE would mislead beside the paper's.
            lines.append((*_names(entry, entry.nfe if entry.ours else None), *cells))
        return Grid(tuple(heads), tuple(lines), num_text=2)

    def _tiny_grid(self) -> Grid:
        columns = self._tiny_columns()
        heads = [("", "row"), ("", "sampling"), ("", "NFE")]
        for metric, names in columns.items():
            heads += [(metric, "ours"), *((metric, name.replace("_", " ")) for name in names)]
        lines = []
        for entry in self._tiny_entries():
            line = _names(entry, entry.nfe)
            for metric, names in columns.items():
                others = entry.baselines_of(metric)
                line += _shown(metric, [entry.tiny.get(metric), *map(others.get, names)])
            lines.append(line)
        return Grid(tuple(heads), tuple(lines), num_text=2)

    def _protocol_grid(self) -> Grid:
        columns = {
            "extractor": "extractor",
            "weights_sha256": "weights",
            "resize": "resize",
            "quantisation": "quantisation",
            "num_samples": "samples",
            "num_reference": "real images",
        }
        lines = []
        for entry in (entry for entry in self.entries if entry.protocol):
            cells = [str(entry.protocol.get(key, "")) for key in columns]
            lines.append((entry.row, entry.sampling, cells[0], cells[1][:8], *cells[2:]))
        heads = ["row", "sampling", *columns.values()]
        return _grid(heads, lines, num_text=6)

    def _paper_metrics(self) -> list[str]:
        """Return each metric once: those of the field in their usual order, then the others."""
        present = dict.fromkeys(
            metric for entry in self.entries for metric in (*entry.paper, *entry.ours)
        )
        unusual = [metric for metric in present if metric not in _LABELS]
        return [metric for metric in _LABELS if metric in present] + unusual

    def _tiny_columns(self) -> dict[str, list[str]]:
        """Return the metrics measured on tiny data, and the names of their baselines."""
        columns: dict[str, dict[str, None]] = {}
        for entry in self.entries:
            for metric in entry.tiny:
                columns.setdefault(metric, {}).update(dict.fromkeys(entry.baselines_of(metric)))
        return {metric: list(names) for metric, names in columns.items()}

    def _tiny_entries(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.tiny]


def _label(metric: str) -> str:
    return _LABELS.get(metric, metric)


def _names(entry: Entry, nfe: int | None) -> tuple[str, ...]:
    return entry.row, entry.sampling, "" if nfe is None else str(nfe)


def _shown(metric: str, values: Iterable[float | None]) -> tuple[str, ...]:
    """Return numbers with the metric's usual digits, and nothing for what is not known."""
    form = _DECIMALS.get(metric, ".4g")
    return tuple("" if value is None else format(value, form) for value in values)


def _comparison(entry: Entry, metric: str) -> tuple[str, str, str]:
    paper, ours, difference = entry.compared(metric)
    shown, signed = _shown(metric, [paper, ours]), "+" + _DECIMALS.get(metric, ".4g")
    return shown[0], shown[1], "" if difference is None else format(difference, signed)


def _baselines(entry: Entry, metric: str) -> str:
    others = entry.baselines_of(metric)
    numbers = zip(others, _shown(metric, others.values()), strict=True)
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in numbers)


def _grid(heads: Sequence[str], lines: Sequence[tuple[str, ...]], num_text: int = 3) -> Grid:
    return Grid(tuple(("", head) for head in heads), tuple(lines), num_text)
