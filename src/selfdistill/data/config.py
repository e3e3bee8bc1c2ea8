"""Parameters of the preprocess stage."""

from typing import Literal

from pydantic import Field

from selfdistill.base_config import Config


class PreprocessConfig(Config):
    """How raw images become image shards.

    Attributes:
        crop: Name of the crop in `selfdistill.data.crops.CROPS`.
        resolution: Side of the cropped image in pixels.
        num_classes: Classes the raw images must have.
        shard_size: Raw images a shard; it holds fewer when some are rejected.
        max_reject_share: Largest share of unreadable images that is tolerated, in [0, 1).
    """

    crop: Literal["adm"]
    resolution: int = Field(gt=0)
    num_classes: int = Field(gt=0)
    shard_size: int = Field(gt=0)
    max_reject_share: float = Field(ge=0, lt=1)
