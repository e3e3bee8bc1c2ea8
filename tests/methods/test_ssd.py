"""SSD, iSSD and what they are compared with: theorems, on networks small enough to know."""

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo import config as dynamo

from selfdistill.data.loader import Batch
from selfdistill.diffusion.config import GridConfig, SolverConfig
from selfdistill.diffusion.discrete import LINEAR, ddim, ddim_step, respaced_times
from selfdistill.diffusion.process import Chain, Flow, as_times, pairs
from selfdistill.diffusion.solvers import adams_bashforth_2, euler, time_points
from selfdistill.draws import Draws
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.diffusion import Diffusion
from selfdistill.methods.dsd import DSD
from selfdistill.methods.progressive import Progressive
from selfdistill.methods.progressive_config import ProgressiveConfig
from selfdistill.methods.registry import build_method, build_network
from selfdistill.methods.ssd import SSD
from selfdistill.methods.ssd_config import SSDConfig
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.fusion import Fusion
from selfdistill.pipelines.train import layers
from selfdistill.pipelines.train.layers import compile_layers, recompute_layers

ALPHA, SIGMA = LINEAR.alpha, LINEAR.sigma
SITES = ("branch", "gated", "block", "output")
EXPLICIT = {"form": "explicit", "weight": "auto"}
IMPLICIT = {"form": "implicit", "mix_prev": 0.25, "site": "gated"}


def transformer(name="dit", **changes):
    values = {
        "name": name, "latent_size": 4, "latent_channels": 3, "patch_size": 2, "width": 16,
        "depth": 2, "num_heads": 2, "num_classes": 5, "learn_sigma": name == "dit",
    }  # fmt: skip
    more = {"noise_at": 0, "projectors": None} if name == "sit" else {}
    return NetworkConfig.model_validate({**values, **more, **changes})


def config(target=IMPLICIT, **changes):
    values = {"name": "ssd", "target": target, "grid": {"num_steps": 5}, "class_dropout": 0.1}
    return MethodConfig.model_validate({**values, **changes})


def awake(network):
    """Give the gates and outputs that start at zero some weight, as a training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def build(method_config, network_config=None):
    torch.manual_seed(0)
    network = awake(build_network(network_config or transformer()))
    kinds = {"ssd": SSD, "progressive": Progressive, "diffusion": Diffusion}
    return kinds[method_config.root.name](network, method_config.root, {})


def moved(method):
    """Let the trained network leave the frozen one, so that a test can tell them apart."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return method


def batch_of(num=6, shape=(3, 4, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, *shape, generator=generator)
    labels = torch.randint(0, 5, (num,), generator=generator)
    return Batch(images, labels, None, Draws(seed, torch.arange(num)))


def start_of(batch):
    """Return the ends of each sample's step on the grid of five, and the state at its start."""
    number = batch.draws.integers("step", 4, 1).squeeze(1)
    times = as_times(respaced_times(5))
    s, t = times[number], times[number + 1]
    eps = batch.draws.normal("eps", 3, 4, 4)
    a, b = (table[s].view(-1, 1, 1, 1).float() for table in (ALPHA, SIGMA))
    return s, t, a * batch.images + b * eps


def step(method, batch, lr=1e-2, num=3):
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr)
    for _ in range(num):
        sum(method.loss(batch).values()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["dit", "sit"])
@pytest.mark.parametrize(
    "target",
    [
        {"form": "explicit", "weight": 0.0},
        *({"form": "implicit", "mix_prev": 0.0, "site": site} for site in SITES),
    ],
)
def test_without_strength_there_is_nothing_to_learn(kind, target):
    method = build(config(target), transformer(kind))
    assert method.loss(batch_of())["distillation"].tolist() == [0.0] * 6


@pytest.mark.parametrize("target", [EXPLICIT, *({**IMPLICIT, "site": site} for site in SITES)])
def test_with_strength_there_is_and_it_is_learned(target):
    method = build(config(target))
    before = method.loss(batch_of())["distillation"].mean()
    step(method, batch_of(), num=20)
    after = method.loss(batch_of())["distillation"].mean()
    assert 0 < after < before


@pytest.mark.parametrize("target", [EXPLICIT, *({**IMPLICIT, "site": site} for site in SITES)])
@pytest.mark.parametrize("kind", ["dit", "sit", "repa"])
def test_every_trained_parameter_gets_a_gradient(kind, target):
    """Or ranks would wait for it."""
    projectors = {"block": 1, "width": 8, "dims": [6]}
    changes = {"noise_at": 1, "projectors": projectors} if kind == "repa" else {}
    net = transformer("sit" if kind == "repa" else kind, **changes)
    method = build(config(target), net)
    method.loss(batch_of())["distillation"].mean().backward()
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    assert trained
    gradients = dict(method.named_parameters())
    assert all(gradients[name].grad is not None for name in trained)
    assert not any("projectors" in name for name in trained)


def test_explicit_targets_are_means_of_both_ends():
    """Eq. 5, written out for one sample of each step of the grid."""
    method = moved(build(config({"form": "explicit", "weight": 0.3}, class_dropout=0.0)))
    batch = batch_of(12)
    s, t, x_s = start_of(batch)
    at_s = method.frozen(x_s, s, batch.labels)[:, :3]
    at_t = method.frozen(ddim_step(x_s, at_s, s, t), t, batch.labels)[:, :3]
    error = (0.3 * at_t + 0.7 * at_s - method.network(x_s, s, batch.labels)[:, :3]).square()
    expected = error.mean(dim=(1, 2, 3))
    torch.testing.assert_close(method.loss(batch)["distillation"], expected)


@pytest.mark.parametrize("site", ["branch", "gated", "block"])
def test_implicit_students_are_mixed_and_their_targets_are_not(site):
    """Eq. 6, with the passes written out."""
    target = {"form": "implicit", "mix_prev": 0.4, "site": site, "fuse_output": True}
    method = moved(build(config(target, class_dropout=0.0)))
    batch = batch_of(12)
    s, t, x_s = start_of(batch)
    at_s, recorded = method.frozen.record(x_s, s, batch.labels, site)
    x_t = ddim_step(x_s, at_s[:, :3], s, t)
    own = method.network(x_t, t, batch.labels, Fusion(site, 0.4, recorded))
    student = 0.4 * at_s + 0.6 * own
    error = (student - method.frozen(x_t, t, batch.labels))[:, :3].square()
    torch.testing.assert_close(method.loss(batch)["distillation"], error.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
def test_all_passes_see_the_same_dropped_labels(target, monkeypatch):
    method = build(config(target, class_dropout=0.5))
    seen = []
    forward = type(method.network).condition

    def spy(self, t, labels):
        seen.append(labels.clone())
        return forward(self, t, labels)

    monkeypatch.setattr(type(method.network), "condition", spy)
    batch = batch_of(64)
    method.loss(batch)
    assert len(seen) == 3
    assert all(torch.equal(labels, seen[0]) for labels in seen)
    assert 10 < int((seen[0] == 5).sum()) < 54


@pytest.mark.parametrize("target", [EXPLICIT, IMPLICIT])
def test_the_frozen_network_stays_and_gets_no_gradient(target):
    method = build(config(target))
    before = copy.deepcopy(method.frozen.state_dict())
    step(method, batch_of())
    assert all(parameter.grad is None for parameter in method.frozen.parameters())
    after = method.frozen.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    after = method.network.state_dict()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 20


@pytest.mark.parametrize("site", ["branch", "gated", "block"])
def test_recomputed_layers_give_the_same_gradients(site):
    gradients = []
    for recomputed in (False, True):
        method = build(config({**IMPLICIT, "site": site}))
        if recomputed:
            recompute_layers(method)
        method.loss(batch_of())["distillation"].mean().backward()
        gradients.append([p.grad for p in method.network.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("site", SITES)
def test_variants_of_a_compiled_layer_stay_below_the_limit_of_recompiling(site, monkeypatch):
    """Frozen and trained, recording and mixing, batch and probe; beyond it nothing is compiled."""
    num_graphs = [0]

    def backend(graph, _):
        num_graphs[0] += 1
        return graph.forward

    torch.compiler.reset()
    compiled = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(layers.torch, "compile", compiled)
    own = {"solver": "ddim", "num_steps": 3, "guidance": 1.5, "guidance_interval": (0, 1)}
    chosen = config({**IMPLICIT, "site": site}, guidance=1.5, synthetic=own)
    method = build(chosen, transformer(depth=12))  # more layers than the limit
    compile_layers(method)
    recompute_layers(method)
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        for _ in range(2):
            method.loss(batch_of(4))["distillation"].mean().backward()
            method.diagnose(batch_of(6))
    assert 3 <= num_graphs[0] <= 8
    torch.compiler.reset()


def test_a_loss_over_all_outputs_sees_the_variance_too():
    batch, losses = batch_of(), []
    for included in (False, True):
        method = build(config(include_variance=included))
        method.loss(batch)["distillation"].mean().backward()
        rows = method.network.final_layer.linear.bias.grad.view(4, 6)  # of a patch, by channel
        losses.append(rows[:, 3:].abs().sum())
    assert losses[0] == 0 < losses[1]


@pytest.mark.parametrize("channels", [None, 2])
def test_a_guided_step_is_taken_by_the_guided_noise(channels):
    changes = {"guidance": 3.0, "guided_channels": channels, "class_dropout": 0.0}
    method = moved(build(config({"form": "explicit", "weight": 0.3}, **changes)))
    batch = batch_of(12)
    s, t, x_s = start_of(batch)
    at_s = method.frozen(x_s, s, batch.labels)[:, :3]
    free = method.frozen(x_s, s, torch.full_like(batch.labels, 5))[:, :3]
    guided = free + 3 * (at_s - free)
    guided = guided if channels is None else torch.cat((guided[:, :2], at_s[:, 2:]), dim=1)
    at_t = method.frozen(ddim_step(x_s, guided, s, t), t, batch.labels)[:, :3]
    error = 0.3 * at_t + 0.7 * at_s - method.network(x_s, s, batch.labels)[:, :3]
    expected = error.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(method.loss(batch)["distillation"], expected)


def test_one_step_is_tuned_and_the_frozen_network_samples_the_others():
    for target, tuned in ((EXPLICIT, 1), (IMPLICIT, 2)):
        method = build(config(target, only_step=1))
        times = method.process.times(method.config.grid)
        asked = [method.network_at(t) is method.network for t in times]
        assert asked == [number == tuned for number in range(5)]
        number, _, _ = method._draw_step(Draws(0, torch.arange(9)))
        assert set(number.tolist()) == {1}
        assert "frozen" not in method.transient


def test_synthetic_data_do_not_look_at_the_images():
    own = {"solver": "ddim", "num_steps": 3, "guidance": 1.5, "guidance_interval": (0, 1)}
    method, batch = build(config(synthetic=own)), batch_of()
    before = method._data(batch)
    torch.testing.assert_close(moved(method)._data(batch), before)  # by the frozen network
    other = dataclasses.replace(batch, images=batch.images + 1)
    torch.testing.assert_close(method.loss(batch), method.loss(other), rtol=0, atol=0)
    real = build(config())
    assert not torch.equal(real.loss(batch)["distillation"], real.loss(other)["distillation"])


def test_diagnostics_tell_the_mixed_student_from_the_network_alone():
    found = build(config(IMPLICIT)).diagnose(batch_of())
    assert set(found) == {"network_error", "frozen_error", "mixed_error"}
    assert found["network_error"] == found["frozen_error"] != found["mixed_error"]
    assert set(build(config(EXPLICIT)).diagnose(batch_of())) == {"network_error", "frozen_error"}


class ExactNoise(nn.Module):
    """Of Gaussian data, N(0.5, 0.3^2); nothing of it is trained."""

    process, noise_shape = "linear_chain", (1, 2, 2)
    null_class = 5

    def forward(self, x_t, t, labels, fusion=None):
        alpha, sigma = (table[t].view(-1, 1, 1, 1) for table in (ALPHA, SIGMA))
        return sigma * (x_t - 0.5 * alpha) / (0.09 * alpha**2 + sigma**2)


@pytest.mark.parametrize("target", [EXPLICIT, {**IMPLICIT, "site": "output"}])
def test_a_step_is_compared_with_many_small_ones(target):
    """The local error of a first-order step falls with the fourth power, squared."""
    errors = []
    for num_steps in (41, 81):
        chosen = config(target, grid={"num_steps": num_steps}).root
        method, batch = SSD(ExactNoise(), chosen, {}), batch_of(512, (1, 2, 2))
        batch = dataclasses.replace(batch, images=0.5 + 0.3 * batch.images.double())
        errors.append(method.diagnose(batch)["frozen_error"])
    assert 6 < errors[0] / errors[1] < 25


class LinearNoise(nn.Module):
    """One linear layer a time, dimension by dimension: noise = A_t x + B_t."""

    process = "linear_chain"
    noise_shape = (2, 1, 1)

    def __init__(self, times):
        super().__init__()
        self.null_class = 1
        mean, variance = torch.tensor([0.3, -0.5]), torch.tensor([0.4, 0.05])
        n = torch.tensor(times)
        slope = SIGMA[n][:, None] / (ALPHA[n][:, None] ** 2 * variance + SIGMA[n][:, None] ** 2)
        self.index = {time: number for number, time in enumerate(times)}
        self.slope = nn.Parameter(slope)
        self.offset = nn.Parameter(-slope * ALPHA[n][:, None] * mean)

    def forward(self, x, t, labels, fusion=None):
        number = [self.index[int(time)] for time in t]
        shape = (-1, 2, 1, 1)
        return self.slope[number].view(shape) * x + self.offset[number].view(shape)


@pytest.mark.parametrize(("mu", "num_steps"), [(1 / 3, 6), (0.2, 6), ("auto", 5)])
def test_issd_of_a_linear_layer_converges_to_the_second_order_multistep_rule(mu, num_steps):
    """The fixed point is eps(x_t, t) + k (eps(x_t, t) - eps(x_s, s)), k = mu / (1 - mu)."""
    times = respaced_times(num_steps)
    target = {"form": "implicit", "mix_prev": mu, "site": "output"}
    chosen = config(target, grid={"num_steps": num_steps}, class_dropout=0.0).root
    method = SSD(LinearNoise(times).double(), chosen, {})
    draws = Draws(0, torch.arange(400))
    x0 = draws.normal("x0", 2, 1, 1).double()
    batch = Batch(x0, torch.zeros(400, dtype=torch.int64), None, draws)
    optimizer = torch.optim.LBFGS(
        method.network.parameters(), max_iter=400, tolerance_grad=1e-14,
        tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = method.loss(batch)["distillation"].mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 1e-13
    x_s = torch.randn(50, 2, 1, 1, dtype=torch.float64)
    ends = [*times, -1]
    for number in range(num_steps - 1):
        s, t, after = ends[number : number + 3]
        k = Chain(LINEAR).extrapolation(s, t, after) if mu == "auto" else mu / (1 - mu)
        a, b = (torch.full((50,), time) for time in (s, t))
        at_s = method.frozen(x_s, a, None)
        x_t = ddim_step(x_s, at_s, a, b)
        at_t = method.frozen(x_t, b, None)
        expected = at_t + k * (at_t - at_s)
        torch.testing.assert_close(method.network(x_t, b, None), expected, rtol=1e-5, atol=1e-5)


# Gaussian data in 64 dimensions whose exact predictions are affine (dossier 1.6).
MEAN = 0.3 * torch.tensor(np.random.RandomState(0).randn(64))
VARIANCE = torch.tensor(np.geomspace(1.5, 1e-4, 64))


def noise_of(x, n):
    return SIGMA[n] / (ALPHA[n] ** 2 * VARIANCE + SIGMA[n] ** 2) * (x - ALPHA[n] * MEAN)


def velocity_of(z, t):
    variance = t**2 * VARIANCE + (1 - t) ** 2
    return MEAN + (t * VARIANCE - (1 - t)) / variance * (z - t * MEAN)


def frechet(sample):
    at_0, at_1 = (sample(torch.full((1, 64), one, dtype=torch.float64)) for one in (0.0, 1.0))
    std = (at_1 - at_0).abs()
    return float((at_0 - MEAN).square().sum() + (std - VARIANCE.sqrt()).square().sum())


def tuned(process, predict, grid, target):
    """Return the optimum of SSD, or the fixed point of iSSD at the output, as a prediction."""
    chosen = config(target, grid=grid).root
    method = SSD.__new__(SSD)
    method.config, method.process = chosen, process
    method._pairs = pairs(process, GridConfig.model_validate(grid))
    weights = [method._weight(number) for number in range(len(method._pairs))]

    def move(x, s, t):
        one = (as_times([time]) for time in (s, t))
        one = [time.double() if time.is_floating_point() else time for time in one]
        return process.step(x, predict(x, s), *one)

    def back(x, s, t):  # the step is affine in each dimension
        offset = move(torch.zeros_like(x), s, t)
        slope = move(torch.ones_like(x), s, t) - offset
        return (x - offset) / slope

    def at_start(x, s):
        found = [number for number, (start, _) in enumerate(method._pairs) if start == s]
        if not found:
            return predict(x, s)
        t, weight = method._pairs[found[0]][1], weights[found[0]]
        return (1 - weight) * predict(x, s) + weight * predict(move(x, s, t), t)

    def at_end(x, t):
        found = [number for number, (_, end) in enumerate(method._pairs) if end == t]
        if not found:
            return predict(x, t)
        s, mu = method._pairs[found[0]][0], weights[found[0]]
        k = mu / (1 - mu)
        return (1 + k) * predict(x, t) - k * predict(back(x, s, t), s)

    return at_start if chosen.target.form == "explicit" else at_end


def implicit(mu):
    return {"form": "implicit", "mix_prev": mu, "site": "output"}


def explicit(weight):
    return {"form": "explicit", "weight": weight}


@pytest.mark.parametrize(
    ("num_steps", "target", "error"),
    [
        (4, None, 3.401), (10, None, 0.6262), (20, None, 0.1785), (50, None, 0.0330),
        (4, explicit("auto"), 1.429), (10, explicit("auto"), 0.0651),
        (20, explicit("auto"), 0.0092),
        (4, explicit(1.0), 178.1), (10, explicit(1.0), 4.768), (20, explicit(1.0), 0.7304),
        (4, explicit("midpoint"), 81.6), (10, explicit("midpoint"), 2.321),
        (20, explicit("midpoint"), 0.2845),
        (10, explicit(0.25), 0.1268), (20, explicit(0.35), 0.0217),
        (10, implicit(0.4), 0.0854), (10, implicit(1 / 3), 0.1341), (20, implicit(1 / 3), 0.0240),
        (4, implicit(0.55), 0.487), (4, implicit(1 / 3), 1.622), (4, explicit(0.15), 1.022),
        (20, implicit(0.4), 0.0168), (50, explicit(1.0), 0.0716),
        (50, explicit("midpoint"), 0.0148),
        (50, explicit(0.4), 0.0013), (50, implicit(0.35), 0.0014), (50, implicit(1 / 3), 0.0019),
        (50, explicit("auto"), 0.0004), (250, None, 0.0019),
    ],
)  # fmt: skip
def test_errors_of_few_steps_on_gaussian_data(num_steps, target, error):
    """The dossier's table 1.6(a), with DDIM and what the method's optimum predicts."""
    predict = (
        noise_of
        if target is None
        else tuned(Chain(LINEAR), noise_of, {"num_steps": num_steps}, target)
    )
    found = frechet(lambda x: ddim(predict, x, respaced_times(num_steps)))
    assert found == pytest.approx(error, rel=0.05, abs=5e-5)  # the dossier has four decimals


@pytest.mark.parametrize(
    ("num_steps", "target", "error"),
    [
        (10, None, 0.2090), (10, explicit(1.0), 0.1617), (10, explicit("auto"), 0.0259),
        (10, implicit(1 / 3), 0.0169), (10, implicit("auto"), 0.0169), (250, None, 0.00043),
        (250, explicit(1.0), 0.00039), (250, explicit("auto"), 0.0),
    ],
)  # fmt: skip
def test_errors_of_few_steps_on_the_linear_path(num_steps, target, error):
    """The dossier's table 1.6(b): Euler."""
    grid = {"num_steps": num_steps}
    predict = velocity_of if target is None else tuned(Flow(), velocity_of, grid, target)
    found = frechet(lambda x: euler(predict, x, time_points(num_steps)))
    assert found == pytest.approx(error, rel=0.05, abs=1e-5)


def test_on_the_linear_path_issds_fixed_point_samples_as_adams_and_bashforth_do():
    predict = tuned(Flow(), velocity_of, {"num_steps": 10}, implicit("auto"))
    x, times = torch.randn(3, 64, dtype=torch.float64), time_points(10)
    # Along its own samples the state before is not quite the step's inverse.
    found, free = euler(predict, x, times), adams_bashforth_2(velocity_of, x, times)
    plain = euler(velocity_of, x, times)
    assert (found - free).norm() < 0.1 * (plain - free).norm()


def test_halving_leaves_nothing_to_learn_where_one_step_does_for_two():
    """A velocity that neither time nor place changes."""
    values = {"grid": {"num_steps": 8}, "class_dropout": 0.1, "weighting": "none"}
    method_config = ProgressiveConfig.model_validate({"name": "progressive", **values})
    torch.manual_seed(0)
    network = build_network(transformer("sit"))  # as built it predicts zero
    method = Progressive(network, method_config, {})
    with torch.no_grad():
        method.network.final_layer.linear.bias.normal_()
        method.frozen.load_state_dict(method.network.state_dict())
    loss = method.loss(batch_of())["distillation"]
    assert float(loss.detach().max()) < 1e-10


@pytest.mark.parametrize("kind", ["dit", "sit"])
def test_a_halved_step_leads_where_two_steps_lead(kind):
    values = {"grid": {"num_steps": 4}, "class_dropout": 0.0, "weighting": "none"}
    chosen = MethodConfig.model_validate({"name": "progressive", **values})
    method = moved(build(chosen, transformer(kind)))
    batch = batch_of(1)
    number = int(batch.draws.integers("step", 2, 1))
    times = [*method.process.times(GridConfig(num_steps=4)), method.process.end]
    s, middle, t = (as_times([time]) for time in times[2 * number : 2 * number + 3])
    x_s = method.process.noised(batch.images, batch.draws.normal("eps", 3, 4, 4), s)
    x = x_s
    for one, other in ((s, middle), (middle, t)):
        x = method.process.step(x, method.frozen(x, one, batch.labels)[:, :3], one, other)
    wanted = method.process.joining(x_s, x, s, t)
    torch.testing.assert_close(method.process.step(x_s, wanted, s, t), x)
    error = (method.network(x_s, s, batch.labels)[:, :3] - wanted).square().mean()
    torch.testing.assert_close(method.loss(batch)["distillation"][0], error)


@pytest.mark.parametrize("kind", ["dit", "sit"])
def test_truncated_snr_takes_the_larger_error_of_noise_and_data(kind):
    batch, losses = batch_of(64), []
    for weighting in ("none", "truncated_snr"):
        values = {"grid": {"num_steps": 8}, "class_dropout": 0.0, "weighting": weighting}
        chosen = MethodConfig.model_validate({"name": "progressive", **values})
        method = build(chosen, transformer(kind))
        losses.append(method.loss(batch)["distillation"].detach())
    number = batch.draws.integers("step", 4, 1).squeeze(1)
    t = as_times(method.process.times(GridConfig(num_steps=8)))[::2][number]
    if kind == "dit":  # in units of the noise's error, the data's is (sigma / alpha)^2
        factor = (SIGMA / ALPHA).square()[t].clamp(min=1).float()
    else:  # of the velocity's: noise t^2, data (1 - t)^2
        factor = torch.maximum(t.square(), (1 - t).square())
    torch.testing.assert_close(losses[1], losses[0] * factor)


ORDINARY = MethodConfig.model_validate(
    {"name": "diffusion", "class_dropout": 0.1, "ema_decay": None}
)


def test_ordinary_training_learns_noise_and_variance():
    method = build(ORDINARY)
    losses = method.loss(batch_of())
    assert set(losses) == {"error", "variance"}
    losses["variance"].mean().backward()
    bias = method.network.final_layer.linear.bias.grad.view(4, 6)
    assert bias[:, :3].abs().sum() == 0 < bias[:, 3:].abs().sum()  # not through the mean
    assert set(build(ORDINARY, transformer("sit")).loss(batch_of())) == {"error"}


def test_without_an_average_the_network_samples_and_is_kept_once(tmp_path):
    averaged = {**ORDINARY.root.model_dump(), "ema_decay": 0.9}
    sizes = []
    for chosen in (ORDINARY, MethodConfig.model_validate(averaged)):
        method = build(chosen)
        step(method, batch_of(), num=1)
        method.after_step(6, 6)
        about = {"network_config": transformer(), "method_config": chosen, "about": {"nimg": 6}}
        saved = Checkpoint.write(tmp_path / str(chosen.root.ema_decay), method, **about)
        released = saved.load(torch.device("cpu")).released().state_dict()
        same = [
            torch.equal(released[name], value)
            for name, value in method.network.state_dict().items()
        ]
        assert all(same) == (chosen is ORDINARY)
        sizes.append(len(load_file(saved.path / "weights.safetensors")))
    assert sizes[1] == 2 * sizes[0]


def test_the_control_of_a_head_learns_as_dsd_trains_it(network):
    """Logit-normal times, squared error and 1 - cosine over channels."""
    control = {**ORDINARY.root.model_dump(), "time_distribution": "logit_normal", "cosine": 1.0}
    method = build(MethodConfig.model_validate({**control, "class_dropout": 0.0}), network)
    batch = batch_of(6, (3, 16, 16))
    t = batch.draws.normal("t", 1).sigmoid()
    eps, z0 = batch.draws.normal("eps", 4, 4), method.trunk.encode(batch.images)
    h, _ = method.trunk.denoise(t[..., None] * z0 + (1 - t[..., None]) * eps)
    v = method.network(h, t.squeeze(1), batch.labels)
    losses = method.loss(batch)
    torch.testing.assert_close(losses["error"], (v - (z0 - eps)).square().mean(dim=(1, 2)))
    cosine = torch.nn.functional.cosine_similarity(v, z0 - eps, dim=-1).mean(dim=1)
    torch.testing.assert_close(losses["cosine"], 1 - cosine)


@pytest.fixture
def dsd(network, method):
    torch.manual_seed(0)
    return DSD(
        awake(build_network(network)), method.root, dict.fromkeys(method.root.frozen_weights)
    )


@pytest.fixture
def dsd_checkpoint(tmp_path, network, method, dsd):
    return Checkpoint.write(
        tmp_path / "dsd", dsd, network_config=network, method_config=method, about={"nimg": 64}
    )


@pytest.mark.parametrize(
    "chosen",
    [config(EXPLICIT), *(config({**IMPLICIT, "site": site}) for site in SITES), ORDINARY],
)
def test_of_dsd_only_the_velocity_head_moves(tmp_path, network, dsd, dsd_checkpoint, chosen):
    """The whole way: start, training, checkpoint, and the network that samples from it."""
    tuned_dsd = build_method(network, chosen, {}, dsd_checkpoint.path)
    batch = batch_of(8, (3, 16, 16))
    step(tuned_dsd, batch, lr=0.1)
    tuned_dsd.after_step(8, 8)
    configs = {"network_config": network, "method_config": chosen}
    saved = Checkpoint.write(tmp_path / "tuned", tuned_dsd, **configs, about={"nimg": 8})
    before = dsd.average.state_dict()
    after = saved.load(torch.device("cpu")).released().state_dict()
    moved = {
        name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }
    assert moved <= {"dit_layer", "velocity_out", "time_embedding", "class_embedding"}
    assert "velocity_out" in moved
    trunk = saved.load(torch.device("cpu")).trunk.state_dict()
    assert all(torch.equal(before[name], trunk[name]) for name in before)


def test_an_untuned_head_samples_as_the_dsd_it_starts_from(network, dsd, dsd_checkpoint):
    eps, labels = torch.randn(3, 4, 4), torch.tensor([0, 1, 2])
    draws = Draws(0, torch.arange(3))
    solver = SolverConfig(
        solver="euler", num_steps=4, timestep_shift=0.3, guidance=2.0, guidance_interval=(0.1, 1)
    )
    tuned_dsd = build_method(network, config(EXPLICIT), {}, dsd_checkpoint.path)
    expected = dsd.eval().sample(eps, labels, solver, draws)
    torch.testing.assert_close(tuned_dsd.sample(eps, labels, solver, draws), expected)


def test_checkpoints_do_without_what_only_training_needs(tmp_path):
    halving = {"grid": {"num_steps": 4}, "class_dropout": 0.0, "weighting": "none"}
    for chosen in (config(), MethodConfig.model_validate({"name": "progressive", **halving})):
        method = build(chosen)
        about = {"network_config": transformer(), "method_config": chosen, "about": {"nimg": 1}}
        saved = Checkpoint.write(tmp_path / chosen.root.name, method, **about)
        loaded = saved.load(torch.device("cpu"))
        assert loaded.frozen is None
        assert not [name for name in loaded.state_dict() if "frozen" in name]
        for name, value in method.network.state_dict().items():
            assert torch.equal(loaded.network.state_dict()[name], value)


def test_a_start_of_another_network_is_refused(tmp_path):
    chosen = config()
    about = {"network_config": transformer(), "method_config": chosen, "about": {"nimg": 1}}
    saved = Checkpoint.write(tmp_path / "start", build(chosen), **about)
    with pytest.raises(ValueError, match="not the one that the row starts with"):
        build_method(transformer(width=32), chosen, {}, saved.path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_method(transformer(), chosen, {}, Path("nowhere.pt"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": {"form": "implicit", "mix_prev": "auto", "site": "gated"}}, "site gated"),
        ({"target": {**IMPLICIT, "site": "output", "fuse_output": True}}, "leave it out"),
        ({"grid": {"num_steps": 1}}, "two or more"),
        ({"only_step": 4}, "steps 0 to 3"),
        ({"target": {"form": "implicit", "lambda": 0.2, "site": "gated"}}, "lambda"),
    ],
)
def test_what_cannot_be_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        SSDConfig.model_validate(config().root.model_dump() | changes)
