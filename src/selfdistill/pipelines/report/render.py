"""A grid of finished cells as Markdown, as HTML and as text for a terminal."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --quiet: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #151b23; --quiet: #9198a1; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p { color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th.text, td.text { text-align: left; }
thead { background: var(--soft); } thead th { font-weight: 600; }
tr.group th { border-bottom: 0; text-align: center; }
th.sub { font-weight: 400; color: var(--quiet); } .first { border-left: 1px solid var(--line); }
td a { color: inherit; text-decoration: none; } td a:hover { text-decoration: underline; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; font-size: .85rem; }
:target { outline: 2px solid var(--line); outline-offset: .5rem; }
img { max-width: 100%; border: 1px solid var(--line); background: white; }
""".strip()


@dataclass(frozen=True)
class Grid:
    """A table whose cells are text already.

    Attributes:
        heads: Heading of each column: its group, empty where it has none, and its name.
        lines: Cells, one tuple a line, as long as `heads`.
        num_text: How many columns, from the left, are text; the rest are numbers.
        anchors: Where on the page the cells of each line lead to; none: nowhere.
    """

    heads: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, ...], ...]
    num_text: int
    anchors: tuple[str, ...] = ()


def to_markdown(grid: Grid) -> str:
    """Return a Markdown table that is aligned as plain text too."""
    heads = tuple(" ".join(part for part in head if part) for head in grid.heads)
    columns = list(zip(heads, *grid.lines, strict=True))
    cells = []
    for number, column in enumerate(columns):
        width = max(3, *map(len, column))
        is_text = number < grid.num_text
        rule = "-" * width if is_text else "-" * (width - 1) + ":"
        padded = [cell.ljust(width) if is_text else cell.rjust(width) for cell in column]
        cells.append([padded[0], rule, *padded[1:]])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*cells, strict=True))


def to_text(grid: Grid) -> str:
    """Return the lines with their columns aligned, for a terminal."""
    lines = [tuple(name for _, name in grid.heads), *grid.lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def to_html(grid: Grid) -> str:
    """Return an HTML table; columns of one group stand under a common heading."""
    kinds = ["text" if number < grid.num_text else "" for number in range(len(grid.heads))]
    for number in range(1, len(grid.heads)):
        if grid.heads[number][0] != grid.heads[number - 1][0]:
            kinds[number] = f"{kinds[number]} first".strip()
    anchors = grid.anchors or ("",) * len(grid.lines)
    groups = [(group, len(list(same))) for group, same in groupby(group for group, _ in grid.heads)]
    top = "".join(
        f'<th colspan="{span}"{_class("first" if group else "")}>{html.escape(group)}</th>'
        for group, span in groups
    )
    heads = "".join(
        f"<th{_class(kind, 'sub' if group else '')}>{html.escape(name)}</th>"
        for kind, (group, name) in zip(kinds, grid.heads, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{_class(kind)}>{_linked(cell, anchor)}</td>"
            for kind, cell in zip(kinds, line, strict=True)
        )
        + "</tr>"
        for line, anchor in zip(grid.lines, anchors, strict=True)
    )
    head = f"<tr>{heads}</tr>"
    if any(group for group, _ in groups):
        head = f'<tr class="group">{top}</tr>\n{head}'
    return (
        f'<div class="wide"><table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def to_page(title: str, sections: Sequence[tuple[str, str]], pictures: Mapping[str, str]) -> str:
    """Return a whole HTML page that needs neither network nor script.

    Args:
        title: Heading of the page, plain text.
        sections: Headings, plain text and possibly empty, and the HTML below them.
        pictures: Captions and links, relative to the page.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, content in sections:
        body += [f"<h2>{html.escape(heading)}</h2>"] if heading else []
        body.append(content)
    for caption, link in pictures.items():
        text = html.escape(caption)
        body.append(f'<h2>{text}</h2>\n<img src="{html.escape(link)}" alt="{text}">')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _linked(cell: str, anchor: str) -> str:
    text = html.escape(cell)
    return f'<a href="#{html.escape(anchor)}">{text}</a>' if cell and anchor else text


def _class(*names: str) -> str:
    present = " ".join(name for name in names if name)
    return f' class="{present}"' if present else ""
