"""Nodes of the verify pipelines."""

from pathlib import Path

from selfdistill.distributed_config import DistributedConfig


def verify_shards(distributed: DistributedConfig, **places: Path) -> None:
    """Compare every file of a dataset's shard sets with what was noted when it was written.

    Args:
        distributed: How many files are read at a time.
        places: Where the sets are published; one that has not been made is passed over.

    Raises:
        FileNotFoundError: If no set has been made.
        DamagedError: If files are damaged; all of them are in the log.
    """
    from selfdistill.data.shard_job import verify

    verify(list(places.values()), distributed.num_workers)
