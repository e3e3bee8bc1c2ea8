"""Where a network comes from."""

from typing import Self

from pydantic import model_validator

from selfdistill.base_config import Config


class OriginConfig(Config):
    """A network that is there already: a row's, or published weights.

    Attributes:
        row: A row, by the network of its checkpoint that samples.
        weights: Published weights, catalog entry `weights.<name>`.
    """

    row: str | None = None
    weights: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.row is None) == (self.weights is None):
            raise ValueError("give either row, or weights")
        return self

    @property
    def entry(self) -> str:
        """The catalog entry of the network."""
        return f"{self.row}.checkpoint" if self.row else f"weights.{self.weights}"
