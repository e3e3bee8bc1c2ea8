"""Hyper-parameters of self step-distillation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config
from selfdistill.data.config import Probability
from selfdistill.diffusion.config import GridConfig, SolverConfig
from selfdistill.methods.objective import Objective


class ExplicitConfig(Config):
    """SSD: the student at a step's start learns a mean of the step's two ends (Eq. 5 and 7).

    Attributes:
        weight: lambda, of the prediction at the step's end: 0 is no change, 1 is Eq. 10 with the
            end for the middle. "auto": what makes the step of second order; "midpoint": Eq. 12.
    """

    form: Literal["explicit"]
    weight: Probability | Literal["auto", "midpoint"]


class ImplicitConfig(Config):
    """iSSD: the student at a step's end is held back towards its start, and learns (Eq. 6 and 7).

    Attributes:
        mix_prev: mu, the weight of what the frozen network left at the step's start: lambda of Eq.
            6 as it is printed, 0 is no change. The paper's prose reads the other way; lambda has no
            key here. "auto", at the output only: what makes the steps of second order.
        site: What is mixed: outputs of attention and MLP before their gates, after them, the
            residual stream after each block, or the prediction alone.
        fuse_output: Whether the prediction is mixed beside the site, as Eq. 6 has it to the letter.
    """

    form: Literal["implicit"]
    mix_prev: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"]
    site: Literal["branch", "gated", "block", "output"]
    fuse_output: bool = False

    @model_validator(mode="after")
    def _site_fits(self) -> Self:
        if self.mix_prev == "auto" and self.site != "output":
            raise ValueError(
                f"mix_prev auto is of the prediction alone, not of site {self.site}: give a number"
            )
        if self.fuse_output and self.site == "output":
            raise ValueError("fuse_output: site output mixes the prediction already; leave it out")
        return self


class SSDConfig(Objective):
    """Self step-distillation (Ma et al., CVPR 2025): a network learns from its own next step.

    Attributes:
        target: The form.
        grid: The times of the sampler that the network is tuned for.
        class_dropout: Share of the labels replaced by the null class, the same in all passes.
        guidance: Scale at which the step from one time to the next is taken; 1 = off.
        guided_channels: As in a sampling.
        include_variance: Whether what a DiT says of its variance is learned beside its noise.
        only_step: The one step of the grid that is tuned, from 0: by SSD the time at its start, by
            iSSD that at its end; at the others the frozen network goes on sampling. None: all.
        synthetic: How the frozen network makes the clean data itself; None: they are real.
    """

    name: Literal["ssd"]
    target: Annotated[ExplicitConfig | ImplicitConfig, Field(discriminator="form")]
    grid: GridConfig
    class_dropout: Probability
    guidance: Annotated[float, Field(ge=0)] = 1.0
    guided_channels: Annotated[int, Field(gt=0)] | None = None
    include_variance: bool = False
    only_step: Annotated[int, Field(ge=0)] | None = None
    synthetic: SolverConfig | None = None

    @property
    def needs_start(self) -> bool:
        """Return true: there is nothing to learn from a random network."""
        return True

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        num_pairs = self.grid.num_times - 1
        if not num_pairs:
            raise ValueError("grid: one time has no next one; two or more are needed")
        if self.only_step is not None and self.only_step >= num_pairs:
            raise ValueError(f"only_step {self.only_step}: there are steps 0 to {num_pairs - 1}")
        return self
