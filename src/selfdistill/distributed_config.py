"""How a stage spreads over this machine. Nothing here may change a result."""

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
        num_ranks: Processes that train, encode or sample together; "auto" is one a GPU, or one.
        strategy: How ranks keep their gradients equal.
        num_workers: Processes for work on files; 0 works in the calling process, "auto" takes
            every core this process may use.
        num_hosts: Machines that share the making of shards, on one file system.
        host: Number of this machine among them, from 0.
        strict_reads: Whether each record that is read from shards is compared with its checksum.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_ranks: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    strategy: Literal["ddp"] = "ddp"
    num_workers: Annotated[int, Field(ge=0), BeforeValidator(_all_cores)] = Field(
        default="auto", validate_default=True
    )
    num_hosts: Annotated[int, Field(gt=0)] = 1
    host: Annotated[int, Field(ge=0)] = 0
    strict_reads: bool = False

    @model_validator(mode="after")
    def _host_is_one_of_them(self) -> Self:
        if self.host >= self.num_hosts:
            raise ValueError(
                f"host {self.host}: with num_hosts {self.num_hosts}, hosts are 0 to "
                f"{self.num_hosts - 1}"
            )
        return self
