import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method, build_network
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.plan.sampling import num_guided, trace_sampling


def solver(name, num_steps, guidance=1.0, start=0.0):
    return SolverConfig(
        solver=name, num_steps=num_steps, timestep_shift=0.3, guidance=guidance,
        guidance_interval=(start, 1),
    )  # fmt: skip


def network_of(name):
    values = {
        "name": name, "latent_size": 4, "latent_channels": 3, "patch_size": 2, "width": 16,
        "depth": 2, "num_heads": 2, "num_classes": 5, "learn_sigma": name == "dit",
    }  # fmt: skip
    more = {"noise_at": 0, "projectors": None} if name == "sit" else {}
    return NetworkConfig.model_validate(values | more)


ORDINARY = MethodConfig.model_validate(
    {"name": "diffusion", "class_dropout": 0.1, "ema_decay": 0.9}
)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("dit", "ddim"), ("dit", "ddpm"), ("dit", "plms2"), ("dit", "dpm2"),
        ("sit", "sde"), ("sit", "heun"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_flop_of_a_sample_of_dit_and_sit(network, name, guidance):
    config = SolverConfig(
        solver=name, num_steps=8, halvings=1, guidance=guidance, guidance_interval=(0.3, 1)
    )
    built = build_method(network_of(network), ORDINARY)
    eps, labels = torch.randn(1, *built.noise_shape()), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        built.sample(eps, labels, config, Draws(0, torch.arange(1)))
    cost = trace_sampling(network_of(network), ORDINARY, {"one": config})
    assert cost.flops == {"one": counter.get_total_flops()}
    assert trace_sampling(network_of(network), ORDINARY, {"one": config}, 7).flops["one"] == (
        cost.flops["one"] + 7
    )


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_who_guides_is_counted_by_its_own_size(name):
    """EDM2's largest networks are guided by its smallest."""
    small = NetworkConfig.model_validate({**network_of("sit").root.model_dump(), "depth": 1})
    config = SolverConfig(solver=name, num_steps=6, guidance=1.5, guidance_interval=(0.3, 1))
    built = build_method(network_of("sit"), ORDINARY)
    built.take_guide(build_network(small))
    eps, labels = torch.randn(1, *built.noise_shape()), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        built.sample(eps, labels, config, Draws(0, torch.arange(1)))
    samplings = {"one": config, "other": config}
    cost = trace_sampling(network_of("sit"), ORDINARY, samplings, guides={"one": small})
    assert cost.flops["one"] == counter.get_total_flops() < cost.flops["other"]


@pytest.mark.parametrize("name", ["euler", "heun", "ab2"])
@pytest.mark.parametrize(("guidance", "start"), [(1.0, 0.0), (1.5, 0.0), (1.5, 0.2)])
def test_the_flop_of_a_sample_are_those_of_all_its_steps(network, method, name, guidance, start):
    config = solver(name, 7, guidance, start)
    built = build_method(network, method)
    eps, labels = torch.randn(1, *built.noise_shape()), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        built.sample(eps, labels, config, Draws(0, torch.arange(1)))
    cost = trace_sampling(network, method, {"one": config})
    assert cost.flops == {"one": counter.get_total_flops()}


def test_guidance_is_counted_where_it_acts():
    assert num_guided(solver("euler", 10)) == 0
    assert num_guided(solver("euler", 10, 1.5)) == 10
    assert num_guided(solver("heun", 10, 1.5)) == 20
    assert 0 < num_guided(solver("euler", 10, 1.5, start=0.5)) < 10


def test_parameters_at_sampling_are_those_that_sampling_reads(network, method):
    """The encoder's way in, the losses' own heads and the trained copy take no part."""
    built = build_method(network, method)
    idle = ("image_in", "latent_out", "z0_out", "class_out", "representation_out")
    used = sum(
        p.numel()
        for name, p in built.average.named_parameters()
        if not name.startswith(idle) and name != "mask_token"
    )
    assert trace_sampling(network, method, {"one": solver("euler", 3)}).num_parameters == used
