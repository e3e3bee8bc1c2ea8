"""Bytes of an image file -> pixels of a square image, as guided-diffusion (ADM) and EDM do it.

A reference statistic was made of images cropped in one way, so the crop is part of the metric's
protocol: another filter, another rounding or another reading of orientation and colour profiles is
another dataset. ADM's statistics of ImageNet at 64, 256 and 512 are of images cropped as ADM does,
and so are EDM2's: its `center-crop-dhariwal` is ADM's crop. EDM's ImageNet at 64 is not: its README
has dataset_tool.py `center-crop` it, and keeps other statistics for ADM's network. On the square
images of FFHQ and AFHQ-v2, which EDM scales without a crop, that crop is that scaling.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # more than this Pillow refuses to decode, and we to scale


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file as Pillow's `convert("RGB")` does, which is ADM's way.

    EXIF orientation, ICC profile and transparency are ignored.

    Args:
        data: The content of the file.

    Returns:
        RGB image, whole.

    Raises:
        ValueError: If the file is empty, truncated, not an image, or would decode to more than
            `MAX_PIXELS`. The message is the reason, the same on every run and machine.
    """
    if not data:
        raise ValueError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # ADM converts always, which copies an RGB image: a tenth of the time.
            is_rgb_jpeg = (image.format, image.mode) == ("JPEG", "RGB")
            return image if is_rgb_jpeg else image.convert("RGB")
    except UnidentifiedImageError:  # its own message holds a memory address
        raise ValueError("not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"refused to decode: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # on broken files, decoders raise whatever their parser runs into
        raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def adm_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Scale the shorter side to `size` and cut the centre, as ADM does.

    Halve with a box filter while the shorter side is at least 2 `size`, then scale by bicubic
    interpolation; the cut starts at floor((side - size) / 2).

    Args:
        image: RGB image of any size.
        size: Side of the result in pixels.

    Returns:
        uint8 pixels, (size, size, 3).

    Raises:
        ValueError: If the image is so elongated that scaling it would exceed `MAX_PIXELS`.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"refused to scale {image.width} x {image.height} pixels to {width} x {height}: "
            f"more than {MAX_PIXELS:,}"
        )
    top, left = (height - size) // 2, (width - size) // 2
    if width > size:
        # Pillow scales rows first, then columns: what is cut off can go in between.
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
        image = image.crop((left, 0, left + size, image.height))
        width, left = size, 0
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def edm_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Cut the largest centred square and scale it to `size` by Lanczos, as EDM does.

    Args:
        image: RGB image of any size.
        size: Side of the result in pixels.

    Returns:
        uint8 pixels, (size, size, 3).
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


CROPS: dict[str, Callable[[Image.Image, int], np.ndarray]] = {
    "adm": adm_center_crop,
    "edm_center": edm_center_crop,
}
