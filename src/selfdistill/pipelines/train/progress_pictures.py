"""Samples of the same noise as a training goes on, one picture an evaluation."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfdistill.files import atomic_path
from selfdistill.pipelines.train.best import PICTURES

_NUM_IMAGES = 10
_MAX_LINES = 40
_SMALLEST_CELL = 32
_GAP = 2
_INK = (40, 40, 40)


def picture_at(directory: Path, nimg: int) -> Path:
    """Return where the picture of an evaluation stands, so that names sort by images seen.

    Args:
        directory: Of the training, or of its checkpoint.
        nimg: Images seen.
    """
    return directory / PICTURES / f"{nimg:012d}.png"


def save_strip(pixels: np.ndarray, path: Path) -> None:
    """Write the first ten images side by side, whole or not at all.

    Args:
        pixels: (N, H, W, 3), uint8.
        path: The PNG; its folder is made.
    """
    strip = np.concatenate(list(pixels[:_NUM_IMAGES]), axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(strip).save(temporary, format="PNG")


def draw_progress(directory: Path) -> Image.Image:
    """Put the pictures of a checkpoint below one another, at most 40, evenly chosen.

    Args:
        directory: Of the checkpoint.

    Returns:
        An RGB picture: images seen on the left, the last evaluation at the bottom.

    Raises:
        FileNotFoundError: If it has none.
    """
    files = sorted((directory / PICTURES).glob("*.png"))
    if not files:
        raise FileNotFoundError(f"{directory / PICTURES}: no picture of an evaluation here")
    chosen = np.linspace(0, len(files) - 1, min(_MAX_LINES, len(files))).astype(int)
    strips = []
    for file in (files[number] for number in chosen):
        with Image.open(file) as opened:
            strips.append((f"{int(file.stem):,}", opened.convert("RGB")))
    width, height = strips[0][1].size
    factor = max(1, -(-_SMALLEST_CELL // height))
    width, height = width * factor, height * factor
    font = ImageFont.load_default(max(12, height // 4))
    margin = int(max(font.getlength(text) for text, _ in strips)) + 12
    picture = Image.new("RGB", (margin + width, len(strips) * (height + _GAP)), "white")
    draw = ImageDraw.Draw(picture)
    for line, (text, strip) in enumerate(strips):
        top = line * (height + _GAP)
        draw.text((6, top + height / 2), text, fill=_INK, font=font, anchor="lm")
        enlarged = strip.resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (margin, top))
    return picture
