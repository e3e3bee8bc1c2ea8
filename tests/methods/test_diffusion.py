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


def test_edm2_learns_the_log_variance_of_its_error_and_keeps_its_weights_norms():
    torch.manual_seed(0)
    edm2 = {key: value for key, value in NETWORK.items() if key != "augment_dim"}
    edm2 |= {"name": "edm2", "logvar_channels": 8, "attention_sides": []}
    configs = {**EDM, "ema_decay": 0.5, "normalize_weights": True, "log_variance": True}
    network = NetworkConfig.model_validate(edm2)
    method = build_method(network, MethodConfig.model_validate(configs), {})
    nn.init.ones_(method.network.unet.out_gain)
    index = torch.arange(6)
    draws, images = Draws(0, index), Draws(1, index).normal("images", 3, 8, 8)
    batch = Batch(images=images, labels=index % 5, features=None, draws=draws)
    sigma = (-1.2 + 1.2 * draws.normal("t", 1).squeeze(1)).exp()
    x_t = images + sigma.view(-1, 1, 1, 1) * draws.normal("eps", 3, 8, 8)
    u = method.network.log_variance(sigma)
    error = (method.network(x_t, sigma, batch.labels) - images).square().mean(dim=(1, 2, 3))
    losses = method.loss(batch)
    torch.testing.assert_close(losses["error"], loss_weight(sigma) * error / u.exp() + u)
    losses["error"].sum().backward()
    head = method.network.logvar_linear.weight
    assert head.grad.abs().max() > 0
    with torch.no_grad():
        head.mul_(3)
    method.after_step(64, 64)
    rms = head.detach().square().mean(dim=1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-3, rtol=0)
    plain = build_method(network, MethodConfig.model_validate({**EDM, "ema_decay": None}), {})
    assert not plain.network.logvar_linear.weight.requires_grad
