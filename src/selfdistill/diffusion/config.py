"""How a probability-flow ODE is solved."""

from typing import Annotated, Literal

from pydantic import Field

from selfdistill.base_config import Config


class SolverConfig(Config):
    """Solver, time grid and guidance of one sampling.

    Attributes:
        solver: Integration rule.
        num_steps: Updates of the state. A paper's "250 steps" that are 250 time points, as in
            LightningDiT's sampler, are 249 of these.
        timestep_shift: s in t' = s t / (1 + (s - 1) t); below 1 it spends more steps near noise.
        guidance: Classifier-free guidance scale, 1 = off.
        guidance_start: Guidance acts for flow times t >= guidance_start.
    """

    solver: Literal["euler"]
    num_steps: Annotated[int, Field(gt=0)]
    timestep_shift: Annotated[float, Field(gt=0)]
    guidance: Annotated[float, Field(ge=0)]
    guidance_start: Annotated[float, Field(ge=0, le=1)] = 0.0
