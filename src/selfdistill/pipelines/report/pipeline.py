"""The stage as lists: a paper's table, sheet of samples and curves; a study; a sweep; a figure."""

from collections.abc import Collection, Iterable, Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.report import nodes


def create_pipeline(
    paper: str,
    entries: Sequence[tuple[str, str]],
    trained: Collection[str],
    selecting: Collection[str] = (),
) -> Pipeline:
    """Build the report of one paper.

    The nodes take any number of keyword arguments, each named as the catalog entry that fills it:
    an argument says by its name which row and sampling it belongs to.

    Args:
        paper: Name of the paper's method, e.g. "dsd"; ends the names of nodes and outputs.
        entries: Lines of the table in order, each a row and one of its samplings.
        trained: The rows that are trained, and have curves.
        selecting: Those of them whose checkpoint is the best of several.
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
                inputs=_by_name(f"{row}.curves" for row in rows if row in trained),
                outputs=f"curves_{paper}",
                name=f"draw_curves_{paper}",
            ),
            Node(
                nodes.tabulate,
                inputs=_by_name(f"{sampling}.metrics" for sampling in samplings)
                | _by_name(f"params:{row}" for row in rows)
                | _by_name(f"{row}.curves" for row in rows if row in selecting),
                outputs=f"table_{paper}",
                name=f"tabulate_{paper}",
            ),
        ]
    )


def create_study_pipeline(study: str, rows: Sequence[str]) -> Pipeline:
    """Build the picture and the numbers of rows that are compared by their training logs.

    Args:
        study: Name of the study; ends the names of nodes and outputs.
        rows: The rows in order, one or more.
    """
    curves = _by_name(f"{row}.curves" for row in rows)
    return Pipeline(
        [
            Node(
                nodes.draw_study,
                inputs=curves,
                outputs=f"figure_{study}",
                name=f"draw_{study}",
            ),
            Node(
                nodes.summarise_study,
                inputs=curves,
                outputs=f"summary_{study}",
                name=f"summarise_{study}",
            ),
        ]
    )


def create_sweep_pipeline(row: str, points: Sequence[str]) -> Pipeline:
    """Build the choice of one row's guidance, with its picture.

    Args:
        row: The row; "params:<row>.sweep" says which metric decides and what the points are.
        points: Names of the samplings that are compared, as in the parameters.
    """
    return Pipeline(
        [
            Node(
                nodes.pick_guidance,
                inputs=_by_name(
                    [*(f"{row}.{point}.metrics" for point in points), f"params:{row}.sweep"]
                ),
                outputs=f"{row}.sweep",
                name=f"pick_guidance_{row}",
            ),
            Node(
                nodes.draw_sweep,
                inputs=f"{row}.sweep",
                outputs=f"{row}.sweep_figure",
                name=f"draw_sweep_{row}",
            ),
        ]
    )


def create_figure_pipeline(figure: str, samplings: Sequence[str], rows: Sequence[str]) -> Pipeline:
    """Build a figure of one metric over what samplings differ in.

    Args:
        figure: Its name; "params:figures.<name>" says what it shows.
        samplings: What it shows, as <row>.<sampling>.
        rows: Whose they are.
    """
    inputs = _by_name(f"{sampling}.metrics" for sampling in samplings)
    inputs |= _by_name(f"params:{name}" for name in (*rows, f"figures.{figure}"))
    return Pipeline(
        [
            Node(
                nodes.collect_figure,
                inputs=inputs,
                outputs=f"summary_{figure}",
                name=f"collect_{figure}",
            ),
            Node(
                nodes.draw_figure,
                inputs=f"summary_{figure}",
                outputs=f"figure_{figure}",
                name=f"draw_{figure}",
            ),
        ]
    )


def _by_name(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}
