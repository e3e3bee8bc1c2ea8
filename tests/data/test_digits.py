import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from selfdistill.data.crops import adm_center_crop, decode_rgb
from selfdistill.data.digits import draw_digits


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return dict(draw_digits())


@pytest.fixture(scope="module")
def whole(files) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if "truncated" not in name}


def test_bytes_are_the_same_every_time(files):
    assert list(files.items()) == list(draw_digits())


def test_all_digits_and_one_broken_file_are_there(files, whole):
    assert len(whole) == 1797
    assert len(files) == 1798
    assert sorted({name.partition("/")[0] for name in files}) == [f"digit_{k}" for k in range(10)]
    (broken,) = files.keys() - whole.keys()
    with pytest.raises(ValueError, match="truncated"):
        decode_rgb(files[broken])


def test_sizes_shapes_and_modes_vary(whole):
    images = [Image.open(io.BytesIO(data)) for data in whole.values()]
    kinds = Counter((image.format, image.mode) for image in images)
    assert kinds["JPEG", "CMYK"] == 1
    assert kinds.keys() > {("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("JPEG", "L")}
    shorter = [min(image.size) for image in images]
    assert (min(shorter), max(shorter)) == (32, 80)
    assert any(image.width > image.height for image in images)
    assert any(image.width < image.height for image in images)


def test_digit_is_bright_whole_and_legible_after_the_crop(whole):
    from sklearn.datasets import load_digits

    originals = load_digits().images / 16
    for name, data in whole.items():
        pixels = adm_center_crop(decode_rgb(data), 32)
        assert pixels[0].max() < 64, name  # dark border: nothing is cut
        assert pixels[-1].max() < 64, name
        assert pixels.max() > 200, name
        small = Image.fromarray(pixels).convert("L").resize((10, 10), Image.Resampling.BOX)
        original = originals[int(name.rpartition("/")[2].partition(".")[0])]
        drawn = np.asarray(small)[1:-1, 1:-1] / 255
        assert np.corrcoef(drawn.ravel(), original.ravel())[0, 1] > 0.9, name
