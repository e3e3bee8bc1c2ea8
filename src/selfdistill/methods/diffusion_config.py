"""Hyper-parameters of ordinary diffusion training."""

from typing import Annotated, Literal

from pydantic import Field

from selfdistill.base_config import Config
from selfdistill.data.augment_config import AugmentConfig
from selfdistill.data.config import Probability
from selfdistill.methods.objective import Objective


class LevelsConfig(Config):
    """Law of the noise levels that EDM's networks are trained at: ln sigma is normal.

    Attributes:
        mean: P_mean: -1.2 in EDM, -0.4 in EDM2.
        deviation: P_std: 1.2 in EDM, 1 in EDM2.
    """

    mean: float
    deviation: Annotated[float, Field(gt=0)]


class DiffusionConfig(Objective):
    """Ordinary training: of DiT, SiT and EDM's networks, of DSD's velocity head, and the control.

    Attributes:
        class_dropout: Share of the labels replaced by the null class.
        ema_decay: Decay of the averaged network per optimizer step; None: there is none, and the
            network itself samples.
        time_distribution: Law of the time: even, or, of flow times, the sigmoid of N(0, 1).
        levels: Law of the noise levels, of EDM's networks; None: of all others.
        cosine: Weight of 1 - cosine of prediction and target over channels, beside the squared
            error, as in LightningDiT and DSD.
        augment: EDM's augmentation of images, of which the network is told; None: there is none.
        normalize_weights: Whether EDM2's weights are brought back to their norm after each step.
        log_variance: Whether EDM2's network learns the log-variance of its error too, by which
            errors of all noise levels weigh alike, whatever they are.
    """

    name: Literal["diffusion"]
    class_dropout: Probability
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    time_distribution: Literal["uniform", "logit_normal"] = "uniform"
    levels: LevelsConfig | None = None
    cosine: Annotated[float, Field(ge=0)] = 0.0
    augment: AugmentConfig | None = None
    normalize_weights: bool = False
    log_variance: bool = False
