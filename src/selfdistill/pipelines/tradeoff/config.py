"""Which samplings are set side by side."""

from typing import Annotated

from pydantic import Field

from selfdistill.base_config import Config

Count = Annotated[int, Field(gt=0)]


class TradeoffConfig(Config):
    """Samplings, from the slowest to the quickest: what each step of a lineage costs and gives.

    Attributes:
        samplings: As <row>.<sampling>; the first one is what the others' times are held against.
        batch_size: Images at once while the time is taken.
        num_rounds: How often each is timed, in turn with the others.
    """

    samplings: list[str] = Field(min_length=2)
    batch_size: Count
    num_rounds: Annotated[int, Field(ge=3)]

    @property
    def rows(self) -> list[str]:
        """Whose samplings they are, each once."""
        return list(dict.fromkeys(one.partition(".")[0] for one in self.samplings))
