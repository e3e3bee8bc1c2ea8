"""Steps, time and quality of samplings, a line each."""

import csv
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfdistill.metrics.config import METRICS
from selfdistill.pipelines.report.render import Grid, to_html, to_markdown, to_page, to_text


@dataclass(frozen=True)
class TradeoffTable:
    """What samplings cost and give.

    Attributes:
        times: What `nodes.time_samplings` returned.
        results: By <row>.<sampling>, what the evaluate stage made.
    """

    times: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]

    @property
    def note(self) -> str:
        """How the times were taken."""
        where = self.times["device"]
        if where == "cpu":
            where = f"a CPU, {self.times['threads']} threads"
        return (
            f"Time: median of rounds taken in turn on {where}, {self.times['batch_size']} images "
            "at once; a VAE's decoder is not timed."
        )

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured."""
        found = {name for result in self.results.values() for name in result["metrics"]}
        return [name for name in METRICS if name in found]

    def markdown(self, title: str) -> str:
        """Return it as a Markdown page."""
        return f"# {title}\n\n{self.note}\n\n{to_markdown(self._grid())}"

    def html(self, title: str, pictures: Mapping[str, str], links: Mapping[str, str]) -> str:
        """Return it as a page; no link stands in it."""
        content = f"<p>{html.escape(self.note)}</p>\n{to_html(self._grid())}"
        return to_page(title, [("", content)], pictures)

    def text(self) -> str:
        """Return it for a terminal."""
        return to_text(self._grid())

    def csv(self) -> str:
        """Return it with all digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["sampling", "nfe", "seconds_per_image", "ratio", *self.metrics])
        for name, time in self.times["samplings"].items():
            values = self.results[name]["metrics"]
            known = [time[key] for key in ("nfe", "seconds_per_image", "ratio")]
            writer.writerow([name, *known, *(values.get(one) for one in self.metrics)])
        return text.getvalue()

    def _grid(self) -> Grid:
        labels = [METRICS[name].label for name in self.metrics]
        heads = ["sampling", "NFE", "ms an image", "of the first", *labels]
        lines = []
        for name, time in self.times["samplings"].items():
            values = self.results[name]["metrics"]
            cells = [
                format(values[one], METRICS[one].digits) if one in values else ""
                for one in self.metrics
            ]
            milliseconds = f"{1e3 * time['seconds_per_image']:.3g}"
            lines.append((name, str(time["nfe"]), milliseconds, f"{time['ratio']:.3g}", *cells))
        return Grid(tuple(("", head) for head in heads), tuple(lines), 1)
