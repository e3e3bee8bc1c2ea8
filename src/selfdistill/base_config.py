"""The base of every configuration model: frozen, no unknown keys, no NaN."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Config(BaseModel):
    """A validated block of parameters; a wrong key or value stops the run and is named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def as_written(value: Any) -> Any:
    """Return a parameter as the YAML has it.

    Kedro hands a part of it over as a model where another node, of the same run, asks for that part
    as one.
    """
    if isinstance(value, Mapping):
        return {key: as_written(part) for key, part in value.items()}
    dump = getattr(value, "model_dump", None)  # a Config, or a root of one
    return value if dump is None else dump(mode="json")
