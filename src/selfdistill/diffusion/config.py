"""How a probability-flow ODE is solved."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config

SolverName = Literal["euler", "heun", "ab2"]
Time = Annotated[float, Field(ge=0, le=1)]


class SolverConfig(Config):
    """Solver, time grid and guidance of one sampling.

    Attributes:
        solver: Integration rule: "euler", first order; "heun", second order with two evaluations
            a step; "ab2", second order with one, from the velocity of the step before.
        num_steps: Updates of the state. A paper's "250 steps" that are 250 time points, as in
            LightningDiT's sampler, are 249 of these.
        timestep_shift: s in t' = s t / (1 + (s - 1) t); below 1 it spends more steps near noise.
        guidance: Classifier-free guidance scale, 1 = off.
        guidance_interval: Guidance acts for flow times from start to end, both included.
    """

    solver: SolverName
    num_steps: Annotated[int, Field(gt=0)]
    timestep_shift: Annotated[float, Field(gt=0)]
    guidance: Annotated[float, Field(ge=0)]
    guidance_interval: tuple[Time, Time]

    @model_validator(mode="after")
    def _interval_increases(self) -> Self:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} runs backwards")
        return self

    def guides_at(self, t: float) -> bool:
        """Return whether guidance acts at a flow time."""
        start, end = self.guidance_interval
        return self.guidance != 1 and start <= t <= end

    @property
    def num_evaluations(self) -> int:
        """NFE: evaluations of the velocity; guidance and the decoder are not counted."""
        return 2 * self.num_steps if self.solver == "heun" else self.num_steps
