"""How a stage spreads over this machine, or several. Nothing here may change a result."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from selfdistill.base_config import Config


def _all_cores(value: Any) -> Any:
    return len(os.sched_getaffinity(0)) if value == "auto" else value


class DistributedConfig(Config):
    """The machine's share in a run.

    Attributes:
        device: Where tensors live; "auto" takes CUDA when there is a GPU.
        num_ranks: Processes of this host that train, encode or sample together; "auto" is one a
            GPU, or one.
        strategy: What a rank holds of the networks in training, of their gradients and of their
            optimizers: "ddp" all of it, "fsdp" its share, for networks that one GPU has no room
            for.
        num_workers: Processes for work on files; 0 works in the calling process, "auto" takes
            every core this process may use.
        num_hosts: Machines on one file system that share the work: with a `rendezvous`, those whose
            ranks work together; without, those that make shards by the share pipelines.
        host: Number of this machine among them, from 0. With a `rendezvous`, 0 is the one that runs
            Kedro; the others run `selfdistill.worker join`.
        rendezvous: "host:port" on host 0 by which the ranks of several hosts find each other;
            None: ranks are of this host alone.
        max_restarts: How often the ranks of a stage are started again when one is lost, without an
            hour's work between two losses.
        strict_reads: Whether each record that is read from shards is compared with its checksum.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_ranks: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    num_workers: Annotated[int, Field(ge=0), BeforeValidator(_all_cores)] = Field(
        default="auto", validate_default=True
    )
    num_hosts: Annotated[int, Field(gt=0)] = 1
    host: Annotated[int, Field(ge=0)] = 0
    rendezvous: Annotated[str, Field(pattern=r"^[^:/\s]+:\d{1,5}$")] | None = None
    max_restarts: Annotated[int, Field(ge=0)] = 3
    strict_reads: bool = False

    @property
    def spans_hosts(self) -> bool:
        """Whether ranks of several hosts work together."""
        return self.rendezvous is not None and self.num_hosts > 1

    @model_validator(mode="after")
    def _host_is_one_of_them(self) -> Self:
        if self.host >= self.num_hosts:
            raise ValueError(
                f"host {self.host}: with num_hosts {self.num_hosts}, hosts are 0 to "
                f"{self.num_hosts - 1}"
            )
        return self
