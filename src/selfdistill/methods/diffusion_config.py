"""Hyper-parameters of ordinary diffusion training."""

from typing import Annotated, Literal

from pydantic import Field

from selfdistill.data.config import Probability
from selfdistill.methods.objective import Objective


class DiffusionConfig(Objective):
    """Ordinary training: of DiT and SiT as published, of DSD's velocity head, and the control.

    Attributes:
        class_dropout: Share of the labels replaced by the null class.
        ema_decay: Decay of the averaged network per optimizer step; None: there is none, and the
            network itself samples.
        time_distribution: Law of the time: even, or, of flow times, the sigmoid of N(0, 1).
        cosine: Weight of 1 - cosine of prediction and target over channels, beside the squared
            error, as in LightningDiT and DSD.
    """

    name: Literal["diffusion"]
    class_dropout: Probability
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    time_distribution: Literal["uniform", "logit_normal"] = "uniform"
    cosine: Annotated[float, Field(ge=0)] = 0.0
