"""Parameters of the geometric augmentation that a network is told of."""

from typing import Annotated

from pydantic import Field

from selfdistill.base_config import Config
from selfdistill.data.config import Probability

NUM_AUGMENT_LABELS = 9
"""Numbers that say how an image was augmented: `augment_dim` of a network that is told."""

_Deviation = Annotated[float, Field(ge=0)]


class AugmentConfig(Config):
    """EDM's geometric augmentation (arXiv:2206.00364v2, App. F.2, Table 6).

    Attributes:
        probability: A_prob: share of the images that each transformation but the mirroring is done
            to: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ; 0: images stay as they are.
        always_mirrors: Whether half of all the images are mirrored left to right, as in EDM; false:
            half of a share `probability`, as with those that are mirrored top to bottom.
        scale_deviation: Deviation of log2 of the scale.
        stretch_deviation: Deviation of log2 of the stretch, by which one direction is scaled, and
            its inverse, by which the other is.
        oriented_share: Share of the stretches whose direction is drawn; the others lie along the
            axes. It is EDM's code that has them, not its table.
        translation_deviation: Deviation of the translation in widths and heights of the image.
    """

    probability: Probability
    always_mirrors: bool = True
    scale_deviation: _Deviation = 0.2
    stretch_deviation: _Deviation = 0.2
    oriented_share: Probability = 0.5
    translation_deviation: _Deviation = 0.125
