"""Ordinary training of a diffusion network: what DiT and SiT were made by, and SSD's control.

    noise:     || eps_theta(x_t, t, y) - eps ||^2, t uniform    (DiT, arXiv:2212.09748v2, Eq. 1)
    velocity:  || v_theta(x_t, t, y) - (x0 - eps) ||^2          (SiT, arXiv:2401.08740)
    clean data: w(sigma) || D_theta(x, sigma, y) - x0 ||^2      (EDM, arXiv:2206.00364, Eq. 108)
                that over e^u(sigma), plus u(sigma)             (EDM2, arXiv:2312.02696, Eq. 21)

A DiT that has channels for its variance trains them by the variational bound, from a mean through
which no gradient goes.
"""

import copy
from typing import Any

from torch import Tensor, nn

from selfdistill.data.augment import augment_if
from selfdistill.data.loader import Batch
from selfdistill.diffusion.discrete import variance_bound
from selfdistill.draws import Draws
from selfdistill.methods.diffusion_config import DiffusionConfig
from selfdistill.methods.ema import update_average, warmed_up_decay
from selfdistill.methods.latent_method import LatentMethod
from selfdistill.methods.losses import one_minus_cosine, squared_error
from selfdistill.methods.method import Losses


class Diffusion(LatentMethod):
    """A network and its averaged copy, which samples if there is one.

    Args:
        network: A DiT or SiT, or DSD's ViT.
        config: The objective.
        weights: None is needed.
    """

    def __init__(self, network: nn.Module, config: DiffusionConfig, weights: object = None) -> None:
        super().__init__(network)
        self.config = config
        self.average: Any = None
        if config.log_variance:
            self.network.logvar_linear.requires_grad_(True)
        if config.ema_decay is not None:
            self.average = copy.deepcopy(self.network).requires_grad_(False)

    def loss(self, batch: Batch) -> Losses:
        """Return the errors of the prediction, (N,), and the bound of the variance, if predicted.

        Args:
            batch: Images or latents (N, *data_shape()), labels (N,).
        """
        x0, told = augment_if(self.clean(batch), batch.draws, "augment", self.config.augment)
        eps = self.draw_noise(batch.draws)
        t = self._draw_time(batch.draws)
        labels = self.drop_labels(batch, self.config.class_dropout)
        x_t = self.process.noised(x0, eps, t)
        self.seed_layers(batch.draws, "network")
        output: Tensor = self.network(self.see(x_t), t, labels, *told)
        prediction, target = self.only_prediction(output), self.process.target(x0, eps)
        weight = self.process.loss_weight(t)
        error = weight * squared_error(prediction, target)
        if self.config.log_variance:
            u = self.network.log_variance(t)
            error = error / u.exp() + u
        losses = {"error": error}
        if self.config.cosine:
            channels = 1 if self.trunk is None else -1
            cosine = one_minus_cosine(prediction, target, channels)
            losses["cosine"] = self.config.cosine * cosine
        values = output[:, len(prediction[0]) :]
        if values.shape[1]:
            losses["variance"] = variance_bound(x0, x_t, t, prediction.detach(), values)
        return losses

    def _draw_time(self, draws: Draws) -> Tensor:
        if self.config.time_distribution == "logit_normal":
            return draws.normal("t", 1).sigmoid().squeeze(1)
        if self.config.levels is not None:
            law = self.config.levels
            return (law.mean + law.deviation * draws.normal("t", 1).squeeze(1)).exp()
        return self.process.draw_time(draws)

    def after_step(self, nimg: int, batch_size: int) -> None:
        """Bring EDM2's weights back to their norm, and move the averaged copy, if there is one."""
        if self.config.normalize_weights:
            self.network.normalize_weights()
        if self.config.ema_decay is not None:
            decay = warmed_up_decay(self.config.ema_decay, nimg // batch_size - 1)
            update_average(self.average, self.network, decay)

    def network_at(self, t: float) -> nn.Module:
        """Return the averaged copy, or the network itself."""
        sampling: nn.Module = self.network if self.average is None else self.average
        return sampling

    def released(self) -> nn.Module:
        """Return the network that samples; of a head, the whole ViT with it."""
        return self._whole(self.network_at(0.0))
