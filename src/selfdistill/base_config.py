"""The base of every configuration model: frozen, no unknown keys, no NaN."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A validated block of parameters; a wrong key or value stops the run and is named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def as_written(value: Any) -> Any:
    """Return a parameter as the YAML has it.

    Kedro hands it over as a model where another node, of the same run, asks for that part of it as
    one.
    """
    return value.model_dump(mode="json") if isinstance(value, Config) else value
