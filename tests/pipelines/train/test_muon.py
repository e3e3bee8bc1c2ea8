import pytest
import torch
from torch import nn

from selfdistill.pipelines.train.muon import BatchedMuon, orthogonalise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def test_three_steps_equal_torchs_muon():
    """torch iterates in bfloat16; the float32 iteration differs by its rounding only."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (32, 16), (16, 32), (16, 16)]
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95, "ns_steps": 5}
    optimizer = BatchedMuon(ours, **settings)
    reference = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(3):
        start = [parameter.detach().clone() for parameter in theirs]
        for a, b in zip(ours, theirs, strict=True):
            a.data.copy_(b)
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
        for a, b, before in zip(ours, theirs, start, strict=True):
            assert (a - b).norm() < 0.02 * (b - before).norm()


def test_state_goes_to_torchs_muon_and_back():
    parameter = nn.Parameter(torch.randn(4, 6))
    parameter.grad = torch.randn(4, 6)
    ours = BatchedMuon([parameter], lr=0.1, weight_decay=0, momentum=0.9, ns_steps=5)
    ours.step()
    theirs = torch.optim.Muon([parameter], lr=0.1)
    theirs.load_state_dict(ours.state_dict())
    buffer = theirs.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(buffer, 0.1 * parameter.grad)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 24, 8), (3, 8, 24)])
def test_singular_values_are_pushed_towards_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices, COEFFICIENTS, 5, 1e-7)
    before, after = torch.linalg.svdvals(matrices), torch.linalg.svdvals(result)
    kept = before / before.amax(dim=1, keepdim=True) > 0.05
    assert result.shape == matrices.shape
    assert after[kept].min() > 0.5
    assert after.max() < 1.3


def test_the_updates_rms_is_that_of_adamw():
    """Each step moves a matrix by about 0.2 lr a weight, whatever the gradient's size."""
    for scale in (1e-4, 1e4):
        parameter = nn.Parameter(torch.zeros(64, 64))
        parameter.grad = scale * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        BatchedMuon([parameter], lr=1.0, weight_decay=0, momentum=0.95, ns_steps=5).step()
        assert parameter.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_a_zero_gradient_moves_nothing():
    parameter = nn.Parameter(torch.ones(4, 4))
    parameter.grad = torch.zeros(4, 4)
    BatchedMuon([parameter], lr=1.0, weight_decay=0, momentum=0.95, ns_steps=5).step()
    assert torch.equal(parameter, torch.ones(4, 4))


@pytest.mark.parametrize("num_steps_before", [0, 2])
def test_a_step_that_found_something_infinite_changes_nothing(num_steps_before):
    """Whatever the gradients are, of one shape or of another, from the first step on."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 8), (4, 8)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = BatchedMuon(parameters, lr=0.1, weight_decay=0.1, momentum=0.9, ns_steps=5)

    def step(found_inf, poison):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        parameters[2].grad[0, 0] = poison
        optimizer.found_inf = torch.tensor(float(found_inf))
        optimizer.step()

    for _ in range(num_steps_before):
        step(False, 1.0)

    def content():
        buffers = [optimizer.state[p].get("momentum_buffer") for p in parameters]
        zeros = [
            torch.zeros_like(p) if b is None else b.clone()
            for p, b in zip(parameters, buffers, strict=True)
        ]
        return [p.detach().clone() for p in parameters] + zeros

    before = content()
    step(True, torch.nan)
    assert all(map(torch.equal, before, content()))
    step(False, 1.0)
    assert not any(torch.equal(a, b) for a, b in zip(before, content(), strict=True))
