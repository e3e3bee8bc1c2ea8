"""A labelled contact sheet of a shard set."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfdistill.data.shards import Shards

_MAX_CLASSES = 10
_COLUMNS = 10
_SMALLEST_CELL = 64
_GAP = 2
_INK = (40, 40, 40)


def labelled_grid(samples: Shards) -> Image.Image:
    """Draw the first images of up to ten classes, evenly spread over the labels.

    Args:
        samples: uint8 images, (H, W, 3) each.

    Returns:
        An RGB picture: a row a class, its name on the left; small images enlarged without blur.
    """
    labels = samples.labels
    present = np.unique(labels)
    chosen = present[np.linspace(0, len(present) - 1, min(_MAX_CLASSES, len(present))).astype(int)]
    side = samples.shape[0]
    cell = side * max(1, -(-_SMALLEST_CELL // side))
    font = ImageFont.load_default(max(12, cell // 6))
    names = [_name(samples.class_names, int(label)) for label in chosen]
    margin = int(max(font.getlength(name) for name in names)) + 12
    picture = Image.new(
        "RGB",
        (margin + _COLUMNS * (cell + _GAP), len(chosen) * (cell + _GAP) + _GAP),
        "white",
    )
    draw = ImageDraw.Draw(picture)
    for line, (label, name) in enumerate(zip(chosen, names, strict=True)):
        top = _GAP + line * (cell + _GAP)
        draw.text((6, top + cell / 2), name, fill=_INK, font=font, anchor="lm")
        rows = samples.read(np.flatnonzero(labels == label)[:_COLUMNS])
        for column, pixels in enumerate(rows):
            image = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(image, (margin + column * (cell + _GAP), top))
    return picture


def _name(class_names: list[str], label: int) -> str:
    return class_names[label].split("\n")[0] if label < len(class_names) else f"class {label}"
