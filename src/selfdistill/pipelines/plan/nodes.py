"""Nodes of the plan: from parameters alone, but for the numbers of images that are there."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.base_config import as_written
from selfdistill.data.config import LatentsConfig, PreprocessConfig
from selfdistill.methods.config import MethodConfig
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.networks.vae_config import VAEConfig
from selfdistill.pipelines.plan.config import PlanConfig
from selfdistill.pipelines.sample.config import SampleConfig
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.selection_config import SelectionConfig

if TYPE_CHECKING:
    from selfdistill.pipelines.plan.estimate import DatasetPlan, RowPlan
    from selfdistill.pipelines.plan.table import PlanTable
else:  # Kedro resolves all hints of a node
    DatasetPlan = RowPlan = PlanTable = Any

logger = logging.getLogger(__name__)


def plan_row(
    data: str,
    network: NetworkConfig,
    method: MethodConfig,
    preprocess: PreprocessConfig,
    plan: PlanConfig,
    train: Any = None,
    samplings: dict[str, Any] | None = None,
    teacher: Any = None,
    reconstructed: DatasetPlan | None = None,
    vae: Any = None,
    selection: Any = None,
    **guides: Any,
) -> RowPlan:
    """Plan a row: its step is taken without values, its samplings and its disk are computed.

    Args:
        data: The dataset.
        network: The architecture.
        method: The objective.
        preprocess: Its images.
        plan: The assumptions.
        train: The loop's parameters, as written; None: it is not trained.
        samplings: The samplings by name, as written.
        teacher: The teacher, as written, if it is at work while the row trains.
        reconstructed: The dataset that the row encodes and decodes.
        vae: What decodes its samples, as written; None: they are images.
        selection: What its best state is selected by, as written; None: the last one counts.
        guides: Architectures of rows that guide its samplings, as written, by `guide_<row>`.

    Raises:
        ValueError: If the row's batch does not divide among the GPUs of the plan.
    """
    from selfdistill.pipelines.plan.estimate import plan_training
    from selfdistill.pipelines.plan.sampling import trace_sampling
    from selfdistill.pipelines.plan.step import (
        decoder_flops,
        teacher_flops,
        trace_nothing,
        trace_step,
    )

    taught, resolution = _teacher(teacher), preprocess.resolution
    config = None if train is None else TrainConfig.model_validate(as_written(train))
    if config is None:
        step = trace_nothing(network, method)
    else:
        step = trace_step(
            network, method, config, resolution, num_ranks=plan.num_gpus, teacher=taught
        )
    decoding = 0
    if vae is not None:
        decoding = decoder_flops(VAEConfig.model_validate(as_written(vae)), resolution)
    solvers = {
        name: SampleConfig.model_validate(as_written(one))
        for name, one in (samplings or {}).items()
    }
    guiding = {
        name: one.guide.network
        or NetworkConfig.model_validate(as_written(guides[f"guide_{one.guide.row}"]))
        for name, one in solvers.items()
        if one.guide is not None
    }
    return plan_training(
        data,
        resolution,
        config,
        step,
        teacher_flops(taught, resolution) if taught else 0,
        trace_sampling(network, method, solvers, decoding, guiding) if solvers else None,
        solvers,
        (reconstructed.num_images or 0) if reconstructed else 0,
        plan,
        None if selection is None else SelectionConfig.model_validate(as_written(selection)),
    )


def plan_dataset(
    raw: str,
    place: Path,
    preprocess: PreprocessConfig,
    plan: PlanConfig,
    vaes: dict[str, Any],
    latents: dict[str, Any] | None = None,
    teacher: Any = None,
) -> DatasetPlan:
    """Plan a dataset.

    Args:
        raw: Name of the raw images.
        place: Where the images are published, if they are: then their number is taken from there.
        preprocess: Parameters of the images.
        plan: The assumptions.
        vaes: All VAEs by name, as written.
        latents: The sets of latents by name, as written.
        teacher: The teacher whose features are kept, as written.
    """
    from selfdistill.pipelines.plan.estimate import plan_sets
    from selfdistill.pipelines.plan.step import teacher_flops

    taught = _teacher(teacher)
    counted = _num_made(place)
    sets = {
        name: LatentsConfig.model_validate(as_written(one)) for name, one in (latents or {}).items()
    }
    return plan_sets(
        plan.num_images.get(raw) if counted is None else counted,
        counted is not None,
        preprocess,
        taught,
        teacher_flops(taught, preprocess.resolution) if taught else 0,
        {
            name: (one, VAEConfig.model_validate(as_written(vaes[one.vae])))
            for name, one in sets.items()
        },
        plan,
    )


def tabulate_plan(plan: PlanConfig, **plans: Any) -> PlanTable:
    """Put all plans into one table, and log it.

    Args:
        plan: The assumptions.
        plans: By catalog name, "<row>.row_plan" and "<dataset>.dataset_plan".
    """
    from selfdistill.pipelines.plan.table import PlanTable

    found: dict[str, dict[str, Any]] = {"row_plan": {}, "dataset_plan": {}}
    for entry, one in plans.items():
        name, _, kind = entry.rpartition(".")
        found[kind][name] = one
    table = PlanTable(found["row_plan"], found["dataset_plan"], plan)
    logger.info("%s", table.text())
    return table


def _teacher(written: Any) -> TeacherConfig | None:
    return None if written is None else TeacherConfig.model_validate(as_written(written))


def _num_made(place: Path) -> int | None:
    """Return the number of images of a finished set; None if it is not there, or not readable."""
    from selfdistill.data.shards import HEADER, read_header

    if not (place / HEADER).is_file():
        return None
    try:
        return int(read_header(place)["num_records"])
    except ValueError as error:
        logger.warning("Planned without the number of images that are there: %s", error)
        return None
