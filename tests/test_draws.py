import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.draws import Draws, _cell_centres, philox4x32

# Known answers of Philox4x32-10 from the authors' Random123 distribution: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(1, 40))
def test_a_samples_numbers_do_not_depend_on_its_batch(seed, start, size):
    together = Draws(seed, torch.arange(start, start + 5)).normal("eps", size)
    alone = torch.cat(
        [Draws(seed, torch.tensor([start + i])).normal("eps", size) for i in range(5)]
    )
    assert torch.equal(together, alone)


def test_seeds_names_and_samples_give_different_numbers():
    index = torch.arange(3)
    base = Draws(0, index).uniform("a", 8)
    assert not torch.equal(base, Draws(1, index).uniform("a", 8))
    assert not torch.equal(base, Draws(0, index).uniform("b", 8))
    assert len(base.unique()) == base.numel()


def test_normals_have_the_moments_of_the_normal_law():
    eps = Draws(3, torch.arange(2000)).normal("eps", 16, 16).double()
    n = eps.numel()
    assert abs(eps.mean()) < 5 / n**0.5
    assert abs(eps.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(eps.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    neighbours = (eps[:, :, :-1] * eps[:, :, 1:]).mean()
    assert abs(neighbours) < 5 / n**0.5


def test_uniforms_lie_strictly_between_0_and_1_and_are_even():
    u = Draws(0, torch.arange(4000)).uniform("u", 25)
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, 10, 0, 1)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 30  # chi-squared, 9 degrees of freedom


def test_the_extreme_words_stay_inside_the_unit_interval():
    u = _cell_centres(torch.tensor([0, 0xFFFFFFFF]))
    assert u.dtype == torch.float32
    assert u.tolist() == [2**-24, 1 - 2**-24]


def test_an_odd_number_of_normals_is_a_prefix_shaped_draw():
    assert Draws(0, torch.arange(4)).normal("eps", 7).shape == (4, 7)
    assert Draws(0, torch.arange(4)).normal("t", 1, 1).shape == (4, 1, 1)
