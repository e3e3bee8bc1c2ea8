"""The base of every configuration model: frozen, no unknown keys, no NaN."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A validated block of parameters; a wrong key or value stops the run and is named."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
