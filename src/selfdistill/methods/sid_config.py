"""Hyper-parameters of SiD and SiDA."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfdistill.base_config import Config
from selfdistill.data.augment_config import AugmentConfig
from selfdistill.methods.objective import Objective
from selfdistill.networks.tap_config import TapConfig

EDM_DEVIATION = 0.5
Weight = Annotated[float, Field(ge=0)]
NumImages = Annotated[int, Field(ge=0)]


class AdversaryConfig(Config):
    """SiDA's adversarial terms, by logits of the fake-score network's encoder.

    Attributes:
        generator_weight: lambda of the generator's term: 0.01.
        fake_weight: lambda of the discriminator's: 1 for EDM, 100 for EDM2.
        rests_nimg: Images until the generator moves at all: 100,000.
        joins_nimg: Images until its term joins SiD's, half and half: 200,000.
        largest_gradient: Elements of the fake-score network's gradient are clipped there: 1 for
            EDM; None, as for EDM2: they are not.
        tap: Where a transformer judges; None, as for EDM's networks: behind their encoder.
    """

    generator_weight: Weight
    fake_weight: Weight
    rests_nimg: NumImages
    joins_nimg: NumImages
    largest_gradient: Annotated[float, Field(gt=0)] | None
    tap: TapConfig | None = None


class SiDConfig(Objective):
    """Score identity distillation: a one-step generator from a teacher of noise levels.

    Attributes:
        alpha: Of the generator's loss; 1 or 1.2.
        start_level: sigma_init, at which the generator denoises noise: 2.5.
        largest_share: t_max / 1000: the largest share of EDM's spacing at which the generator is
            judged: 0.8.
        log_mean: P_mean of the fake-score network's noise levels: -1.2 for EDM, -0.4 for EDM2.
        log_deviation: P_std: 1.2 for EDM, 1 for EDM2.
        generator_weight: lambda_sid: 100.
        fake_weight: lambda of the fake-score network's error: 1.
        half_life_nimg: Images in which the averaged generator forgets half, from 500,000 to
            2,000,000.
        ramp_up: The half-life is at most this share of the images seen: 0.05.
        normalize_weights: Whether EDM2's weights are brought back to their norm after each step.
        log_variance: Whether EDM2's log-variance takes part, of networks that have one.
        data_deviation: Standard deviation of the data, by which the fake-score network's error is
            weighed: of DiT, SiT and DSD that of their latents, about 1; None, as for EDM's
            networks, which take it for granted: 0.5.
        teacher_head: Of a DSD teacher, whose clean latents are learned from: the velocity's, by
            which it samples, or its clean head's, by which it was trained. The latter is right only
            of a network that nobody has tuned since.
        adversary: SiDA's terms; None: SiD, which sees no image.
        augment: EDM's augmentation of what the fake-score network learns from, generated images and
            real ones, each for itself; 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ. None: there is
            none.
    """

    name: Literal["sid"]
    alpha: float
    start_level: Annotated[float, Field(gt=0)]
    largest_share: Annotated[float, Field(gt=0, le=1)]
    log_mean: float
    log_deviation: Annotated[float, Field(gt=0)]
    generator_weight: Weight
    fake_weight: Weight
    half_life_nimg: Annotated[int, Field(gt=0)]
    ramp_up: Annotated[float, Field(gt=0)]
    normalize_weights: bool
    log_variance: bool = True
    data_deviation: Annotated[float, Field(gt=0)] | None = None
    teacher_head: Literal["velocity", "clean"] = "velocity"
    adversary: AdversaryConfig | None
    augment: AugmentConfig | None = None

    @property
    def sigma_data(self) -> float:
        """EDM's sigma_data: `data_deviation`, or what EDM's networks take for granted."""
        return EDM_DEVIATION if self.data_deviation is None else self.data_deviation

    @property
    def needs_start(self) -> bool:
        """Return true: the start is the teacher."""
        return True

    @property
    def takes_teacher(self) -> bool:
        """Return true: SiD2A starts as a generator that SiD made."""
        return True

    @property
    def turns(self) -> tuple[str, ...]:
        """Return the fake-score network, and then the generator."""
        return "fake_score", "network"

    @property
    def depends_on_micro_batches(self) -> bool:
        """Return whether there is an adversary: its terms are means over a micro-batch."""
        return self.adversary is not None

    @model_validator(mode="after")
    def _stages_follow(self) -> "SiDConfig":
        one = self.adversary
        if one is not None and one.joins_nimg < one.rests_nimg:
            raise ValueError(
                f"adversary.joins_nimg {one.joins_nimg} is below rests_nimg {one.rests_nimg}: the "
                "generator moves before it is judged"
            )
        return self
