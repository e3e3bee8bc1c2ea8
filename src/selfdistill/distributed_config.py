"""How a stage spreads over this machine. Nothing here may change a result."""

import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_ranks: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    strategy: Literal["ddp"] = "ddp"
    num_workers: Annotated[int, Field(ge=0), BeforeValidator(_all_cores)] = Field(
        default="auto", validate_default=True
    )
