"""Pictures of images, for notebooks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

_SMALLEST_SIDE = 64  # of an image on a sheet, in pixels


def sheet(*lines: Sequence[np.ndarray] | np.ndarray) -> Image.Image:
    """Return lines of images below each other on one picture, small ones enlarged without blur.

    Args:
        lines: Equally many images each, uint8, (N, H, W, 3).
    """
    pixels = np.concatenate([np.concatenate(list(line), axis=1) for line in lines])
    factor = max(1, -(-_SMALLEST_SIDE // len(lines[0][0])))
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
