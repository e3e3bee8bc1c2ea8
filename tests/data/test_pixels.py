import torch

from selfdistill.data.pixels import dequantise, quantise


def test_quantisation_floors_half_a_grey_level_up():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.999, 1.0, 2.0]).view(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert quantise(x)[0, 0, :, 0].tolist() == [0, 0, 64, 128, 255, 255, 255]


def test_every_grey_level_comes_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    x = dequantise(pixels)
    assert x.shape == (1, 3, 16, 16)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert torch.equal(quantise(x), pixels)
