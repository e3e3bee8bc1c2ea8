"""Ranks: how they are started, and the few things they say to each other.

The only package that imports `torch.distributed`. A node starts ranks with `run_job`; each of them
runs `python -m selfdistill.worker`, the command that `torchrun` runs on other hosts.
"""

from selfdistill.distributed.launch import launch, num_ranks, pick_device, run_job, world_size
from selfdistill.distributed.sharding import Part, local
from selfdistill.distributed.world import (
    Job,
    LostRankError,
    World,
    joined,
    reporting,
)

__all__ = [
    "Job", "LostRankError", "Part", "World", "joined", "launch", "local", "num_ranks",
    "pick_device", "reporting", "run_job", "world_size",
]  # fmt: skip
