"""How a sampling goes from noise to data: at which times, by which rule, with which guidance."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config

FlowSolverName = Literal["euler", "heun", "ab2", "sde"]
ChainSolverName = Literal["ddim", "ddpm", "plms2", "plms4", "dpm2"]
LevelSolverName = Literal["edm"]
Time = Annotated[float, Field(ge=0, le=1)]


class GridConfig(Config):
    """The times at which a network is asked, from noise to data.

    A chain of discrete times, as DiT's, is respaced evenly with both ends in it; a linear path, as
    SiT's and DSD's, is cut into equal steps; noise levels, as EDM's, are spaced by its Eq. 5.
    `times` names discrete times one by one instead, `levels` noise levels.

    Attributes:
        num_steps: Updates of the state. A paper's "250 steps" that are 250 time points, as in
            LightningDiT's sampler, are 249 of these.
        timestep_shift: s in t' = s t / (1 + (s - 1) t), of a linear path; below 1 it spends more
            steps near noise.
        last_step: Length in flow time of the last step of a linear path, the others being equal:
            0.04 in REPA's stochastic sampler; None: all are equal.
        times: Discrete times of a chain, decreasing; None: respaced evenly.
        levels: Noise levels, decreasing; None: EDM's, from 80 to 0.002.
        halvings: How often every second of these times is taken, from the noisiest on: what
            progressive distillation leaves of them.
    """

    num_steps: Annotated[int, Field(gt=0)]
    timestep_shift: Annotated[float, Field(gt=0)] = 1.0
    last_step: Annotated[float, Field(gt=0, lt=1)] | None = None
    times: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    levels: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    halvings: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        for key in ("times", "levels"):
            given = getattr(self, key)
            if given is not None and len(given) != self.num_steps:
                raise ValueError(f"{key}: {len(given)} are given, num_steps is {self.num_steps}")
        if self.num_steps % 2**self.halvings:
            raise ValueError(
                f"num_steps {self.num_steps} cannot be halved {self.halvings} times: it counts the "
                "steps before any halving"
            )
        return self

    @property
    def num_times(self) -> int:
        """Times that are left after the halvings."""
        return self.num_steps // 2**self.halvings


class ChurnConfig(Config):
    """Noise that EDM's sampler adds on the way (arXiv:2206.00364, Algorithm 2 and Table 5).

    Attributes:
        amount: S_churn, over all steps; a step raises its level by at most sqrt(2).
        start: S_min, the lowest level at which noise is added.
        end: S_max, the highest.
        noise: S_noise, its deviation.
    """

    amount: Annotated[float, Field(gt=0)]
    start: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(gt=0)]
    noise: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _interval_increases(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"churn from {self.start} to {self.end} runs backwards")
        return self


class SolverConfig(GridConfig):
    """Time grid, solver and guidance of one sampling.

    Attributes:
        solver: Integration rule. Of a linear path: "euler", first order; "heun", second order with
            two evaluations a step; "ab2", second order with one, from the velocity of the step
            before; "sde", Euler and Maruyama's for the reverse stochastic equation, as REPA has
            it. Of a chain of discrete times: "ddim", first order; "ddpm", ancestral, with the
            variance that the network predicts; "plms2", ab2's counterpart; "plms4", Stable
            Diffusion's, fourth order, with one evaluation more; "dpm2", second order
            with two evaluations a step. Of noise levels: "edm", Heun's with one evaluation in the
            last step; with `churn`, stochastic.
        guidance: Classifier-free guidance scale, 1 = off.
        guidance_interval: Guidance acts for flow times from start to end, both included.
        guided_channels: How many channels are guided, the first ones: 3 in DiT's samples; None:
            all.
        churn: Noise added on the way by solver "edm"; None: none.
    """

    solver: FlowSolverName | ChainSolverName | LevelSolverName
    guidance: Annotated[float, Field(ge=0)]
    guidance_interval: tuple[Time, Time]
    guided_channels: Annotated[int, Field(gt=0)] | None = None
    churn: ChurnConfig | None = None

    @model_validator(mode="after")
    def _interval_increases(self) -> Self:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} runs backwards")
        if self.churn is not None and self.solver != "edm":
            raise ValueError(f"churn means nothing for solver {self.solver!r}: leave it out")
        return self

    def guides_at(self, t: float) -> bool:
        """Return whether guidance acts at a flow time."""
        start, end = self.guidance_interval
        return self.guidance != 1 and start <= t <= end

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Self:
        """Return what of a sampling, as written, says how to sample."""
        fields = cls.model_fields
        return cls.model_validate({name: written[name] for name in fields if name in written})

    @property
    def num_evaluations(self) -> int:
        """NFE: evaluations of the network; guidance and the decoder are not counted."""
        if self.solver == "heun":
            return 2 * self.num_times
        if self.solver == "plms4" and self.num_times > 1:
            return self.num_times + 1
        # The last steps of dpm2 and edm are of first order.
        return 2 * self.num_times - 1 if self.solver in ("dpm2", "edm") else self.num_times
