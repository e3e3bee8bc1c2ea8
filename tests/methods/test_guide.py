"""A network that guides, in the place of the row's own without class (EDM2's guidance)."""

import pytest
import torch

from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.diffusion import Diffusion
from selfdistill.methods.diffusion_config import DiffusionConfig
from selfdistill.methods.registry import build_network
from selfdistill.networks.config import NetworkConfig
from selfdistill.pipelines.sample.config import SampleConfig

NETWORK = {
    "name": "edm2", "latent_size": 4, "latent_channels": 2, "width": 8, "multipliers": [1],
    "num_blocks": 1, "attention_sides": [], "num_classes": 3, "conditional": True, "dropout": 0.0,
    "logvar_channels": 0,
}  # fmt: skip
ONE_STEP = SolverConfig(
    solver="edm", num_steps=1, levels=(2.0,), guidance=1.7, guidance_interval=(0.0, 1.0)
)
METHOD = DiffusionConfig.model_validate(
    {
        "name": "diffusion",
        "class_dropout": 0,
        "ema_decay": None,
        "levels": {"mean": 0, "deviation": 1},
    }
)


def build(seed, **changes):
    torch.manual_seed(seed)
    network = build_network(NetworkConfig.model_validate({**NETWORK, **changes})).eval()
    torch.nn.init.ones_(network.unet.out_gain)
    return network


def test_samples_go_away_from_what_the_guide_makes_without_class():
    network, guide = build(0), build(1, conditional=False)
    method = Diffusion(network, METHOD)
    method.take_guide(guide)
    eps, labels = torch.randn(3, 2, 4, 4), torch.arange(3)
    found = method.sample(eps, labels, ONE_STEP, Draws(0, torch.arange(3)))
    sigma = torch.full((3,), 2.0)
    with torch.no_grad():
        ours, free = network(2 * eps, sigma, labels), guide(2 * eps, sigma, labels)
    assert torch.allclose(found, free + 1.7 * (ours - free), atol=1e-5)
    assert (found - ours).abs().max() > 0.01
    assert "guide" not in {
        name.partition(".")[0] for name in Diffusion(network, METHOD).state_dict()
    }


def test_guides_of_other_latents_are_refused():
    with pytest.raises(ValueError, match="does not fit the row's network"):
        Diffusion(build(0), METHOD).take_guide(build(1, latent_channels=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 1}, "guidance 1 is none"),
        ({"guide": {"row": "a", "weights": "b"}}, "give either row, or weights"),
        ({"guide": {"weights": "b"}}, "guide.network: say it of weights"),
        ({"guide": {"row": "a", "network": NETWORK}}, "guide.network: say it of weights"),
    ],
)
def test_a_guide_is_a_row_or_weights(changes, message):
    values = {
        **ONE_STEP.model_dump(), "guide": {"row": "a"}, "seed": 0, "num_images": 1, "repeats": 1,
        "batch_size": 1, "shard_size": 1,
    }  # fmt: skip
    assert SampleConfig.model_validate(values).guide.entry == "a.checkpoint"
    with pytest.raises(ValueError, match=message):
        SampleConfig.model_validate({**values, **changes})
