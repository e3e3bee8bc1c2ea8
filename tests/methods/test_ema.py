import pytest
import torch
from torch import nn

from selfdistill.methods.ema import update_average, warmed_up_decay


def test_the_average_is_the_weighted_sum_of_its_history():
    average, network = nn.Linear(3, 2), nn.Linear(3, 2)
    start, expected = average.weight.detach().clone(), 0.9**5 * average.weight.detach().clone()
    for step in range(5):
        nn.init.constant_(network.weight, step)
        update_average(average, network, 0.9)
        expected += 0.1 * 0.9 ** (4 - step) * step
    assert not torch.equal(start, average.weight)
    torch.testing.assert_close(average.weight.detach(), expected)


def test_an_average_without_memory_is_a_copy():
    average, network = nn.Linear(3, 2), nn.Linear(3, 2)
    update_average(average, network, 0.0)
    assert torch.equal(average.weight, network.weight)
    assert torch.equal(average.bias, network.bias)


def test_decay_starts_low_and_ends_at_its_limit():
    decays = [warmed_up_decay(0.99, k) for k in range(2000)]
    assert decays[0] == pytest.approx(0.1)
    assert decays == sorted(decays)
    assert decays[-1] == 0.99
