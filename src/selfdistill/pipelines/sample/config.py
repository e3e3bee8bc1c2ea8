"""One sampling of a checkpoint."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from selfdistill.base_config import Config
from selfdistill.diffusion.config import SolverConfig
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.origin_config import OriginConfig

Count = Annotated[int, Field(gt=0)]


class GuideConfig(OriginConfig):
    """Another network that is asked without class, in the place of the row's own: EDM2's guidance.

    Attributes:
        network: The architecture of published weights.
    """

    network: NetworkConfig | None = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if (self.weights is None) != (self.network is None):
            raise ValueError("guide.network: say it of weights, and only of them")
        return self


class SampleConfig(SolverConfig):
    """Solver, and how many images.

    Attributes:
        guide: The network that guides where it is not the row's own; None: it is.
        data: Key of `datasets.yml`: whose classes are sampled, and whose images the samples are
            held against; None: the row's.
        seed: Seed of the noise, in [0, 2^32).
        num_images: Images of one set. Image i has class i mod K, so classes are as even as can be.
        repeats: Sets, one after the other, each with noise of its own; the evaluation measures
            each and gives mean and standard deviation.
        batch_size: Images a rank makes at once; changes memory, not the images.
        shard_size: Images a shard.
    """

    guide: GuideConfig | None = None
    data: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    num_images: Count
    repeats: Count
    batch_size: Count
    shard_size: Count

    @model_validator(mode="after")
    def _guide_guides(self) -> Self:
        if self.guide is not None and self.guidance == 1:
            raise ValueError("guide: guidance 1 is none; give another, or leave guide out")
        return self

    @property
    def total_images(self) -> int:
        """Images of all sets."""
        return self.num_images * self.repeats


class ReconstructionConfig(Config):
    """Images that a checkpoint encodes and decodes.

    Attributes:
        data: Key of `datasets.yml`: all of its images.
        batch_size: Images a rank holds at once; changes memory, not the images.
        shard_size: Images a shard.
    """

    data: str
    batch_size: Count
    shard_size: Count
