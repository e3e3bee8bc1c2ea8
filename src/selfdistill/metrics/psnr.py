"""Peak signal-to-noise ratio of reconstructed images."""

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair of images, in dB.

    psnr = 10 log10(255² / MSE), with the mean over the pixels and channels of one image.

    Args:
        a: Images, uint8, (N, H, W, C).
        b: Images to pair them with, uint8, (N, H, W, C).

    Returns:
        (N,), float64. It is infinite for a pair of equal images, and then so is a mean over
        images: nothing is capped.

    Raises:
        ValueError: If the images are not uint8, or their shapes differ.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4 or a.shape != b.shape:
        raise ValueError(
            "images must be uint8 (N, H, W, C) in pairs, "
            f"got {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        )
    squares = np.square(a.astype(np.int32) - b)  # exact, as is their sum
    mse = squares.sum((1, 2, 3), dtype=np.int64) / np.prod(a.shape[1:])
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / mse)
