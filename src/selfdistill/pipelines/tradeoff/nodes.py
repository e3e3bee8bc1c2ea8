"""Nodes that compare samplings by steps, time and quality."""

import logging
from typing import TYPE_CHECKING, Any

from selfdistill.base_config import as_written
from selfdistill.distributed_config import DistributedConfig
from selfdistill.pipelines.tradeoff.config import TradeoffConfig
from selfdistill.pipelines.tradeoff.table import TradeoffTable

if TYPE_CHECKING:
    from selfdistill.methods.checkpoint import Checkpoint
else:  # Kedro resolves all hints of a node
    Checkpoint = Any

logger = logging.getLogger(__name__)


def time_samplings(**inputs: Any) -> dict[str, Any]:
    """Time samplings of several checkpoints in turn, on one device, in one run.

    Args:
        inputs: By catalog name: "<row>.checkpoint"; "params:<row>.samplings.<sampling>";
            "params:tradeoffs.<name>"; "params:distributed".

    Returns:
        JSON values: {"device": ..., "batch_size": ..., "samplings": {<row>.<sampling>: {"nfe",
        "seconds_per_image", "seconds", "ratio"}}}; the ratio is to the first sampling, the seconds
        per image a median over the rounds.
    """
    from selfdistill.pipelines.tradeoff.clock import time_in_turn

    (key,) = (name for name in inputs if name.startswith("params:tradeoffs."))
    config = TradeoffConfig.model_validate(as_written(inputs[key]))
    checkpoints: dict[str, Checkpoint] = {
        name.removesuffix(".checkpoint"): value
        for name, value in inputs.items()
        if name.endswith(".checkpoint")
    }
    samplings = {}
    for one in config.samplings:
        row, _, sampling = one.partition(".")
        samplings[one] = as_written(inputs[f"params:{row}.samplings.{sampling}"])
    distributed = DistributedConfig.model_validate(as_written(inputs["params:distributed"]))
    return time_in_turn(config, checkpoints, samplings, distributed.device)


def tabulate_tradeoff(times: dict[str, Any], **metrics: dict[str, Any]) -> TradeoffTable:
    """Set steps, times and metrics side by side.

    Args:
        times: What `time_samplings` returned.
        metrics: By catalog name, "<row>.<sampling>.metrics".
    """
    results = {name.removesuffix(".metrics"): result for name, result in metrics.items()}
    table = TradeoffTable(times, results)
    logger.info("\n%s", table.text())
    return table
