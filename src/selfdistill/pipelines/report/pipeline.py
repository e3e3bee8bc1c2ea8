"""The stage as a list: one table, one sheet of samples and one picture of curves a paper."""

from collections.abc import Iterable, Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.report import nodes


def create_pipeline(paper: str, entries: Sequence[tuple[str, str]]) -> Pipeline:
    """Build the report of one paper.

    The nodes take any number of keyword arguments, each named as the catalog entry that fills it:
    an argument says by its name which row and sampling it belongs to.

    Args:
        paper: Name of the paper's method, e.g. "dsd"; ends the names of nodes and outputs.
        entries: Lines of the table in order, each a row and one of its samplings.
    """
    rows = list(dict.fromkeys(row for row, _ in entries))
    samplings = [f"{row}.{sampling}" for row, sampling in entries]
    return Pipeline(
        [
            Node(
                nodes.draw_sheet,
                inputs=_by_name(f"{sampling}.grid" for sampling in samplings),
                outputs=f"sheet_{paper}",
                name=f"draw_sheet_{paper}",
            ),
            Node(
                nodes.draw_curves,
                inputs=_by_name(f"{row}.curves" for row in rows),
                outputs=f"curves_{paper}",
                name=f"draw_curves_{paper}",
            ),
            Node(
                nodes.tabulate,
                inputs=_by_name(f"{sampling}.metrics" for sampling in samplings)
                | _by_name(f"params:{row}.{key}" for row in rows for key in ("paper", "data")),
                outputs=f"table_{paper}",
                name=f"tabulate_{paper}",
            ),
        ]
    )


def _by_name(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}
