"""Behind a number: its row's parameters, lock, tracked run, curves and samples."""

import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

import yaml


class Measured(Protocol):
    """One sampling of one row."""

    @property
    def row(self) -> str:
        """The row."""
        ...

    @property
    def sampling(self) -> str:
        """The sampling."""
        ...

    @property
    def anchor(self) -> str:
        """Name of the place on the page."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """All parameters of the row."""
        ...

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How it was measured; empty: nobody has run it."""
        ...


def origins(entries: Sequence[Measured], links: Mapping[str, str]) -> str:
    """Return HTML that says of each entry what it was made from.

    Args:
        entries: Those of a row one after the other.
        links: By caption, with <row> and <sampling> in the places of the names. Those of an entry
            that nobody has run lead nowhere and are left out.
    """
    parts = []
    for row, same in groupby(entries, key=lambda entry: entry.row):
        ours = list(same)
        parts.append(f'<h3 id="{html.escape(row)}">{html.escape(row)}</h3>')
        parts += [_samplings(entry, links) for entry in ours]
        parts.append(
            "<details><summary>Parameters</summary>\n"
            f"<pre>{html.escape(_yaml(ours[0].parameters))}</pre>\n</details>"
        )
    return "\n".join(parts)


def _samplings(entry: Measured, links: Mapping[str, str]) -> str:
    made = "nobody has run it yet"
    if entry.protocol:
        targets = {caption: _filled(link, entry) for caption, link in links.items()}
        made = ", ".join(
            f'<a href="{html.escape(target)}">{html.escape(caption)}</a>'
            for caption, target in targets.items()
        )
    name = html.escape(entry.sampling)
    return f'<p id="{html.escape(entry.anchor)}"><strong>{name}</strong>: {made}</p>'


def _filled(link: str, entry: Measured) -> str:
    return link.replace("<row>", entry.row).replace("<sampling>", entry.sampling)


def _yaml(parameters: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(parameters), sort_keys=False, default_flow_style=None, width=100)
