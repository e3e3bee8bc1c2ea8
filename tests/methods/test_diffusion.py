"""Ordinary training of EDM's networks; that of others is tested beside SSD."""

import torch
from torch import nn

from selfdistill.data.augment import augment
from selfdistill.data.augment_config import AugmentConfig
from selfdistill.data.loader import Batch
from selfdistill.diffusion.levels import loss_weight
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig

NETWORK = {
    "name": "ddpmpp", "latent_size": 8, "latent_channels": 3, "width": 16, "multipliers": [1, 1],
    "num_blocks": 1, "attention_sides": [4], "num_classes": 5, "conditional": True,
    "dropout": 0.0, "augment_dim": 9,
}  # fmt: skip
EDM = {
    "name": "diffusion", "class_dropout": 0.0, "ema_decay": None,
    "levels": {"mean": -1.2, "deviation": 1.2},
}  # fmt: skip


def test_an_augmented_image_is_denoised_by_a_network_that_is_told_how():
    torch.manual_seed(0)
    configs = {**EDM, "augment": {"probability": 0.5}}
    method = build_method(
        NetworkConfig.model_validate(NETWORK), MethodConfig.model_validate(configs), {}
    )
    for parameter in method.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(method.network.model.map_augment.weight, std=10)
    index = torch.arange(6)
    draws, images = Draws(0, index), Draws(1, index).normal("images", 3, 8, 8)
    batch = Batch(images=images, labels=index % 5, features=None, draws=draws)
    x0, told = augment(images, draws, "augment", AugmentConfig(probability=0.5))
    sigma = (-1.2 + 1.2 * draws.normal("t", 1).squeeze(1)).exp()
    x_t = x0 + sigma.view(-1, 1, 1, 1) * draws.normal("eps", 3, 8, 8)
    with torch.no_grad():
        clean = method.network(x_t, sigma, batch.labels, told)
        untold = method.network(x_t, sigma, batch.labels)
        found = method.loss(batch)["error"]
    error = (clean - x0).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, loss_weight(sigma) * error)
    assert (clean - untold).abs().max() > 0.01
