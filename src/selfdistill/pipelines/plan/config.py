"""What a plan assumes: machines, how well they are used, sizes of data that nobody has made yet."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from selfdistill.base_config import Config

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _names(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


class HardwareConfig(Config):
    """A GPU as its maker's data sheet has it.

    Attributes:
        bf16_tflops: Dense products of bfloat16, 10^12 FLOP/s.
        tf32_tflops: Dense products of TF32, which float32 is multiplied in, 10^12 FLOP/s.
        memory_gb: Memory, 10^9 bytes.
    """

    bf16_tflops: Positive
    tf32_tflops: Positive
    memory_gb: Positive


class PlanConfig(Config):
    """The assumptions of a plan.

    Attributes:
        rows: Rows and studies that are planned; None: all lines of the tables. Names separated by
            spaces or commas will do.
        num_gpus: GPUs that train a row together, a rank each.
        utilisation: Share of a GPU's peak that a training or sampling reaches.
        usable_memory: Share of a GPU's memory that tensors may take.
        hardware: GPUs by name.
        num_images: Images of a dataset that is not made yet, by the name of its raw images.
    """

    rows: Annotated[list[str] | None, BeforeValidator(_names)]
    num_gpus: Count
    utilisation: Share
    usable_memory: Share
    hardware: dict[str, HardwareConfig] = Field(min_length=1)
    num_images: dict[str, Count]
