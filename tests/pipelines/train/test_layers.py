"""Compiled and recomputed layers compute what plain ones do, whatever came before."""

import functools

import pytest
import torch

from selfdistill.methods.registry import build_method
from selfdistill.pipelines.train import layers
from selfdistill.pipelines.train.layers import compile_layers, recompute_layers


@pytest.fixture
def recorded(monkeypatch):
    """Compile by a backend that runs graphs as they are, and notes which one runs."""
    num_graphs, runs = [0], []

    def backend(graph, _):
        number = num_graphs[0]
        num_graphs[0] += 1

        def run(*inputs):
            runs.append(number)
            return graph.forward(*inputs)

        return run

    torch.compiler.reset()
    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(layers.torch, "compile", compiled)
    yield runs
    torch.compiler.reset()


def pixels(num):
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(num)) * 2 - 1


def test_another_shape_in_between_changes_nothing_for_the_first(network, method, recorded):
    """A probe of another size must not decide by which kernels the targets are computed."""
    average = build_method(network, method).average
    expected = average.encode(pixels(8))
    built = build_method(network, method)
    built.average.load_state_dict(average.state_dict())
    compile_layers(built)

    def graphs(num):
        recorded.clear()
        with torch.no_grad():
            z = built.average.encode(pixels(num))
        return list(recorded), z

    before, z = graphs(8)
    torch.testing.assert_close(z, expected)
    probe, _ = graphs(6)
    after, again = graphs(8)
    assert before == after != probe
    assert torch.equal(z, again)


def test_layers_are_recomputed_around_what_is_compiled(network, method, recorded):
    def gradient(*changes):
        torch.manual_seed(0)
        built = build_method(network, method)
        for change in changes:
            change(built)
        z = built.network.encode(pixels(4))
        recorded.clear()
        z.square().sum().backward()
        return built.network.image_in[0].weight.grad, len(recorded)

    plain, _ = gradient()
    compiled, in_backward = gradient(compile_layers)
    both, recomputed = gradient(compile_layers, recompute_layers)
    torch.testing.assert_close(compiled, plain)
    assert torch.equal(both, compiled)
    assert (in_backward, recomputed) == (0, 2)  # each of the two blocks runs forward once more


def test_compiling_adds_nothing_to_a_state_dict(network, method, recorded):
    built, plain = build_method(network, method), build_method(network, method)
    compile_layers(built)
    recompute_layers(built)
    assert built.state_dict().keys() == plain.state_dict().keys()
