import numpy as np

from selfdistill.data.pictures import sheet


def test_a_sheet_has_a_line_below_each_other_and_enlarges_whole_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    picture = np.asarray(sheet(images[0], list(images[1])))
    assert picture.shape == (2 * 64, 3 * 64, 3)
    assert np.array_equal(picture[::4, ::4][16:, 32:], images[1, 2])
