"""params -> plans of rows and datasets -> one table."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from selfdistill.pipelines.plan import nodes


def create_row_pipeline(
    *,
    data: str,
    trained: bool,
    samplings: bool,
    online_teacher: bool,
    selecting: bool = False,
    reconstructed: str | None,
    decoded: bool,
    guides: Sequence[str] = (),
) -> Pipeline:
    """Return the plan of a row; the registry gives it the row's namespace.

    Args:
        data: Its dataset.
        trained: Whether it is trained.
        samplings: Whether the row has samplings.
        online_teacher: Whether a teacher is at work while it trains.
        selecting: Whether its best state is selected.
        reconstructed: The dataset that it encodes and decodes.
        decoded: Whether a VAE decodes its samples.
        guides: Rows whose networks guide its samplings.
    """
    keys = ("data", "network", "method", *(["train"] if trained else []), "plan")
    inputs = {key: f"params:{key}" for key in keys}
    inputs |= {"preprocess": f"params:{data}.preprocess"}
    inputs |= {"vae": "params:vae"} if decoded else {}
    inputs |= {"samplings": "params:samplings"} if samplings else {}
    inputs |= {"teacher": "params:teacher"} if online_teacher else {}
    inputs |= {"selection": "params:selection"} if selecting else {}
    inputs |= {f"guide_{row}": f"params:{row}.network" for row in guides}
    inputs |= {"reconstructed": f"{reconstructed}.dataset_plan"} if reconstructed else {}
    return Pipeline([Node(nodes.plan_row, inputs=inputs, outputs="row_plan", name="plan_row")])


def create_dataset_pipeline(*, latents: bool, teacher: bool) -> Pipeline:
    """Return the plan of a dataset; the registry gives it the dataset's namespace.

    Args:
        latents: Whether it has sets of latents.
        teacher: Whether features of it are kept.
    """
    inputs = {key: f"params:{key}" for key in ("raw", "preprocess", "plan", "vaes")}
    inputs |= {"place": "images_place"}
    inputs |= {"latents": "params:latents"} if latents else {}
    inputs |= {"teacher": "params:teacher"} if teacher else {}
    return Pipeline(
        [Node(nodes.plan_dataset, inputs=inputs, outputs="dataset_plan", name="plan_dataset")]
    )


def create_table_pipeline(rows: Sequence[str], datasets: Sequence[str]) -> Pipeline:
    """Return the table of all plans.

    Args:
        rows: The rows, in order.
        datasets: Their datasets, in order.
    """
    plans = [f"{row}.row_plan" for row in rows] + [f"{data}.dataset_plan" for data in datasets]
    inputs = {"plan": "params:plan", **{entry: entry for entry in plans}}
    return Pipeline(
        [Node(nodes.tabulate_plan, inputs=inputs, outputs="plan_table", name="tabulate_plan")]
    )
