"""One sampling of a checkpoint."""

from typing import Annotated

from pydantic import Field

from selfdistill.base_config import Config
from selfdistill.diffusion.config import SolverConfig

Count = Annotated[int, Field(gt=0)]


class SampleConfig(SolverConfig):
    """Solver, and how many images.

    Attributes:
        data: Key of `datasets.yml`: whose classes are sampled, and whose images the samples are
            held against; None: the row's.
        seed: Seed of the noise, in [0, 2^32).
        num_images: Images of one set. Image i has class i mod K, so classes are as even as can be.
        repeats: Sets, one after the other, each with noise of its own; the evaluation measures
            each and gives mean and standard deviation.
        batch_size: Images a rank makes at once; changes memory, not the images.
        shard_size: Images a shard.
    """

    data: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    num_images: Count
    repeats: Count
    batch_size: Count
    shard_size: Count

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
