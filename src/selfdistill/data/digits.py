"""The UCI handwritten digits as a folder tree of image files, for the smallest environment.

1,797 real images of 8 x 8 pixels lie inside scikit-learn (E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI repository, 1998). Written out like this they put the
preprocess stage through what ImageNet puts it through: many sizes and aspect ratios, grey, colour,
palette and CMYK files, and a broken one.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIDES = (32, 80)  # least and greatest shorter side of an image, in pixels
_MAX_ASPECT = 1.5
_KINDS = (  # mode, format, suffix
    ("L", "PNG", "png"),
    ("RGB", "PNG", "png"),
    ("P", "PNG", "png"),
    ("L", "JPEG", "jpg"),
    ("RGB", "JPEG", "JPEG"),
)
_CMYK = ("CMYK", "JPEG", "JPEG")


def draw_digits() -> Iterator[tuple[str, bytes]]:
    """Yield the image files, the same bytes every time with the same Pillow.

    One digit is a CMYK JPEG. One more file than there are digits is a JPEG without its end.

    Yields:
        Path relative to the dataset's folder, `digit_<class>/<number>.<suffix>`, and content.
    """
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    for number, (digit, label) in enumerate(zip(digits.reshape(-1, 8, 8), labels, strict=True)):
        image = last_image = _draw(digit, rng)
        kind = _CMYK if number == 0 else _KINDS[rng.integers(len(_KINDS))]
        yield f"digit_{label}/{number:04d}.{kind[2]}", _encode(image, *kind[:2])
    whole = _encode(last_image, "RGB", "JPEG")
    yield f"digit_{labels[-1]}/truncated.JPEG", whole[: len(whole) * 3 // 4]


def _draw(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Scale a digit and put it in the middle of a black image that is longer on one side.

    Args:
        digit: Ink, (8, 8), in [0, 16].
        rng: Draws the size.

    Returns:
        Grey image, ink bright. A centre crop to the shorter side keeps the digit whole.
    """
    side = int(rng.integers(_SIDES[0], _SIDES[1], endpoint=True))
    margin = int(rng.integers(0, int(side * (_MAX_ASPECT - 1)), endpoint=True))
    framed = np.pad(digit, 1)  # (10, 10): strokes reach the border of the 8 x 8 pixels
    grey = Image.fromarray(np.rint(framed * 255 / 16).astype(np.uint8))
    width, height = (side + margin, side) if rng.random() < 0.5 else (side, side + margin)
    image = Image.new("L", (width, height))
    scaled = grey.resize((side, side), Image.Resampling.BICUBIC)
    image.paste(scaled, ((width - side) // 2, (height - side) // 2))
    return image


def _encode(image: Image.Image, mode: str, file_format: str) -> bytes:
    file = io.BytesIO()
    if file_format == "JPEG":
        image.convert("RGB").convert(mode).save(file, file_format, quality=95)
    else:
        image.convert(mode).save(file, file_format)
    return file.getvalue()
