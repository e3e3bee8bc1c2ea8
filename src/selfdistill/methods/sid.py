"""SiD and SiDA: a one-step generator from a many-step teacher (arXiv:2404.04057, 2410.14919).

    x_g = f_theta(sigma_init z, sigma_init)                           the generator, one evaluation

In turn, the fake-score network psi learns to denoise what the generator makes, and the generator
learns that teacher phi and psi agree on it. In SiDA, psi's encoder also tells real images from
generated ones, with no parameter beside, and the generator learns to deceive it. All three begin as
the teacher, but in SiD2A the generator as one that SiD made; an average of the generator samples.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.augment import augment_if
from selfdistill.data.loader import Batch
from selfdistill.diffusion.levels import level_at, loss_weight
from selfdistill.draws import Draws
from selfdistill.methods.ema import half_life_decay, update_average
from selfdistill.methods.latent_method import LatentMethod
from selfdistill.methods.method import Losses, LossFn
from selfdistill.methods.sid_config import SiDConfig
from selfdistill.methods.sid_losses import (
    Denoised,
    deception,
    denoising,
    discrimination,
    score_identity,
    whole_images,
)

_LARGEST_GRADIENT = 1e5  # what an infinite one becomes


class SiD(LatentMethod):
    """Generator, its average, fake-score network, and the frozen teacher.

    Args:
        network: The teacher: a network that denoises at noise levels, EDM's or EDM2's; others
            come adapted (`methods.sid_adapted`).
        config: The objective.
        weights: Of frozen networks, of which there are none to read; None: a method that only
            samples, without fake-score network and teacher.
        teacher: The teacher, where `network` is a generator already, as in SiD2A; None: `network`.

    Attributes:
        network: The generator, theta.
        average: Its average, which samples.
        fake_score: psi; None: there is none.
        teacher: phi; None: there is none.
        nimg: Images seen before this step.
    """

    def __init__(
        self,
        network: nn.Module,
        config: SiDConfig,
        weights: object = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(network)
        self.config = config
        self.average: Any = copy.deepcopy(self.network).requires_grad_(False)
        self.fake_score: Any = None
        self.teacher: Any = None
        if weights is not None:
            taught = self.network if teacher is None else teacher
            self.fake_score = copy.deepcopy(taught)
            self.teacher = copy.deepcopy(taught).requires_grad_(False).eval()
            if getattr(self.fake_score, "logvar_linear", None) is not None:
                self.fake_score.logvar_linear.requires_grad_(config.log_variance)
        self.nimg = 0

    @property
    def transient(self) -> tuple[str, ...]:
        """Teacher and fake-score network."""
        return "fake_score", "teacher"

    def before_step(self, nimg: int) -> None:
        """Remember the number of images: stages begin by it."""
        self.nimg = nimg

    def turns(self) -> dict[str, LossFn]:
        """Return the fake-score network's loss, and then the generator's."""
        return {"fake_score": self.fake_score_loss, "network": self.loss}

    def rests(self, name: str) -> bool:
        """Return whether the generator stays as it is: until the discriminator knows something."""
        adversary = self.config.adversary
        if name != "network" or adversary is None:
            return False
        return self.nimg <= adversary.rests_nimg

    def fake_score_loss(self, batch: Batch) -> Losses:
        """Return the fake-score network's error on generated images, and its discrimination, (N,).

        Real and generated images are of the same classes, and are seen with the same noise. Each is
        augmented for itself, and the network is told how; the generator's turn knows nothing of it.

        Args:
            batch: Images or latents (N, *data_shape()), labels (N,).
        """
        self.fake_score.train()
        self.network.eval()
        self.seed_layers(batch.draws, "fake")
        labels, draws = batch.labels, batch.draws
        with torch.no_grad():
            x_g = self._generate(draws.normal("fake_z", *self.noise_shape()), labels)
        x_g, told = augment_if(x_g, draws, "augment_fake", self.config.augment)
        standard = draws.normal("fake_level", 1).squeeze(1)
        log_sigma = self.config.log_mean + self.config.log_deviation * standard
        sigma = self.known_level(log_sigma.exp())
        noise = self._noise(draws, "fake_eps", sigma)
        weight, u = loss_weight(sigma, self.config.sigma_data), self._log_variance(sigma)
        f_psi, of_fake = self.fake_score.denoise_and_judge(x_g + noise, sigma, labels, *told)
        seen, adversary = [x_g, f_psi, of_fake], self.config.adversary
        if adversary is not None:
            real = self.clean(batch)
            real, told = augment_if(real, draws, "augment_real", self.config.augment)
            seen.append(self.fake_score.judge(real + noise, sigma, labels, *told))
        kept, (x_g, f_psi, of_fake, *of_real) = whole_images(*seen)
        error = denoising(x_g, f_psi, weight, u).flatten(1).sum(dim=1)
        losses = {"denoising": self.config.fake_weight * error}
        if adversary is not None:
            shared = weight if u is None else weight / u.exp()
            term = discrimination(of_real[0], of_fake, shared, kept)
            losses["discrimination"] = adversary.fake_weight * term
        return _kept(losses, kept)

    def loss(self, batch: Batch) -> Losses:
        """Return the generator's weighted terms, (N,): SiD's, and when its time has come, SiDA's.

        Args:
            batch: Labels (N,), and draws; its images are not looked at.
        """
        self.network.train()
        self.fake_score.eval()
        self.seed_layers(batch.draws, "network")
        labels, draws = batch.labels, batch.draws
        x_g = self._generate(draws.normal("z", *self.noise_shape()), labels)
        sigma = self._draw_level(draws)
        x_t = x_g + self._noise(draws, "eps", sigma)
        f_phi = self.teacher(x_t, sigma, labels)
        f_psi, logits = self.fake_score.denoise_and_judge(x_t, sigma, labels)
        kept, (x_g, f_phi, f_psi, logits) = whole_images(x_g, f_phi, f_psi, logits)
        u, adversary = self._log_variance(sigma), self.config.adversary
        scale = 1.0 if u is None else 1 / u.detach().exp()
        term = score_identity(x_g, Denoised(f_phi, f_psi), self.config.alpha).flatten(1).sum(dim=1)
        losses = {"score_identity": self.config.generator_weight * term * scale}
        if adversary is not None and self.nimg > adversary.joins_nimg:
            deceived = deception(x_g, f_phi, logits, kept) * x_g[0].numel()
            losses["deception"] = adversary.generator_weight * deceived * scale
            losses = {name: value / 2 for name, value in losses.items()}
        return _kept(losses, kept)

    def clean_gradients(self, name: str, gradients: list[Tensor]) -> Tensor | None:
        """Replace what is not finite, and clip the fake-score network's elements, in place."""
        broken = torch.stack([(~gradient.isfinite()).sum() for gradient in gradients]).sum()
        largest = _LARGEST_GRADIENT
        adversary = self.config.adversary if name == "fake_score" else None
        bound = None if adversary is None else adversary.largest_gradient
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0.0, posinf=largest, neginf=-largest, out=gradient)
            if bound is not None:
                gradient.clamp_(-bound, bound)
        return broken

    def after_step(self, nimg: int, batch_size: int) -> None:
        """Bring EDM2's weights back to their norm, and move the averaged generator."""
        if self.config.normalize_weights:
            for network in (self.fake_score, self.network):
                network.normalize_weights()
        before = nimg - batch_size
        half_life = min(self.config.half_life_nimg, self.config.ramp_up * before)
        update_average(self.average, self.network, half_life_decay(half_life, batch_size))

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> dict[str, Any]:
        """Return what tells whether the training converges, which its losses do not.

        The mean squared gap of teacher and fake-score network on generated images, the logits'
        means and the discriminator's accuracy, at the generator's noise levels.
        """
        labels, draws = batch.labels, batch.draws
        modes = [(part, part.training) for part in (self.network, self.fake_score)]
        for part, _ in modes:
            part.eval()
        x_g = self._generate(draws.normal("z", *self.noise_shape()), labels)
        sigma = self._draw_level(draws)
        noise = self._noise(draws, "eps", sigma)
        f_phi = self.teacher(x_g + noise, sigma, labels)
        f_psi, logits = self.fake_score.denoise_and_judge(x_g + noise, sigma, labels)
        found = {"score_gap": float((f_phi - f_psi).square().mean())}
        if self.config.adversary is not None:
            of_real = self.fake_score.judge(self.clean(batch) + noise, sigma, labels)
            right = torch.cat((of_real > 0, logits < 0)).float().mean()
            found |= {
                "logit_of_real": float(of_real.mean()),
                "logit_of_fake": float(logits.mean()),
                "discriminator_accuracy": float(right),
            }
        for part, training in modes:
            part.train(training)
        return found

    def known_level(self, sigma: Tensor) -> Tensor:
        """Return the noise levels that the networks know next to drawn ones, (N,): these."""
        return sigma

    def network_at(self, t: float) -> nn.Module:
        """Return the averaged generator."""
        return self.average

    def released(self) -> nn.Module:
        """Return the averaged generator."""
        return self.average

    def _generate(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return generated data of standard normal noise, (N, *noise_shape()) both."""
        level = torch.full((len(z),), self.config.start_level, device=z.device)
        return self.network(self.config.start_level * z, level, labels)

    def _draw_level(self, draws: Draws) -> Tensor:
        """Return the noise levels at which generated data are judged, (N,)."""
        share = self.config.largest_share * draws.uniform("level", 1).squeeze(1)
        return self.known_level(level_at(share))

    def _noise(self, draws: Draws, name: str, sigma: Tensor) -> Tensor:
        """Return noise of levels (N,), (N, *noise_shape())."""
        shape = self.noise_shape()
        return sigma.view(-1, *[1] * len(shape)) * draws.normal(name, *shape)

    def _log_variance(self, sigma: Tensor) -> Tensor | None:
        """Return EDM2's u of the fake-score network; None: it has none."""
        network = self.fake_score
        has_one = getattr(network.config, "logvar_channels", 0) and self.config.log_variance
        return network.log_variance(sigma) if has_one else None


def _kept(losses: Losses, kept: Tensor) -> Losses:
    """Put NaN in the places of images that one was found in: no gradient, but they are counted."""
    return {name: value.where(kept, torch.nan) for name, value in losses.items()}
