"""checkpoints, metrics -> times, table: of samplings of several rows."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.tradeoff import nodes


def create_pipeline(name: str, samplings: Sequence[str]) -> Pipeline:
    """Build the pipeline; it takes no part in DVC, to which a time is no result.

    Args:
        name: Its name; "params:tradeoffs.<name>" says what is compared.
        samplings: As <row>.<sampling>.
    """
    pairs = [one.split(".") for one in samplings]
    inputs = dict.fromkeys(f"{row}.checkpoint" for row, _ in pairs)
    inputs |= dict.fromkeys(f"params:{row}.samplings.{sampling}" for row, sampling in pairs)
    inputs |= dict.fromkeys([f"params:tradeoffs.{name}", "params:distributed"])
    return Pipeline(
        [
            Node(
                nodes.time_samplings,
                inputs={one: one for one in inputs},
                outputs=f"times_{name}",
                name=f"time_{name}",
            ),
            Node(
                nodes.tabulate_tradeoff,
                inputs={
                    "times": f"times_{name}",
                    **{f"{one}.metrics": f"{one}.metrics" for one in samplings},
                },
                outputs=f"tradeoff_{name}",
                name=f"tabulate_{name}",
            ),
        ]
    )
