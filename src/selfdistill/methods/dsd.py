"""DSD: Diffusion as Self-Distillation (arXiv:2511.14716v1), Sec. 3 and 4.

One ViT is trained from scratch to encode, to denoise and to decode. It predicts the latent that
its own averaged copy sees in the clean image, from a noised latent of the augmented image:

    z_t   = t E(x+) + (1 - t) eps                        not detached: the encoder learns from it
    L_DSD = || P(h(z_t), t, y) - sg(E_ema(x)) ||^2       (Eq. 13), unweighted in t
    L_vel = || V(sg(h(z_t)), t, y) - sg(z* - eps) ||^2   (Eq. 14), and 1 - cosine of the two

beside reconstruction from h(z_t), alignment of h with a teacher's features, distillation of the
averaged network's features, and classification of the latent. `target` and `prediction` lead back
to where the paper starts from, Eq. 2 (naive) and Eq. 8 (decoupled), whose latents collapse.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.data.loader import Batch
from selfdistill.data.photometric import photometric
from selfdistill.diffusion import paths
from selfdistill.diffusion.config import SolverConfig
from selfdistill.diffusion.guidance import drop_labels, guide
from selfdistill.diffusion.process import PROCESSES
from selfdistill.draws import Draws
from selfdistill.methods.dsd_config import DSDConfig
from selfdistill.methods.ema import update_average, warmed_up_decay
from selfdistill.methods.losses import one_minus_cosine, squared_error
from selfdistill.methods.method import Autoencoder, Losses, LossFn
from selfdistill.metrics import rank
from selfdistill.metrics.rank import effective_rank, rank_diagnostics
from selfdistill.networks.dsd_vit import DSDViT
from selfdistill.networks.lpips import LPIPS, load_lpips, random_lpips

_PEAK = 2.0  # of images in [-1, 1], for the PSNR


class DSD(Autoencoder):
    """The online network, its averaged copy, the loss that joins them, and the sampler.

    Args:
        network: The one ViT, freshly initialised.
        config: The objective.
        weights: Files of frozen networks by name, for the loss; None in place of a file: that
            network keeps its shapes alone, no weights; None for all: a method that only samples.

    Raises:
        ValueError: If the network lacks the head of a term of the loss.
    """

    def __init__(
        self,
        network: DSDViT,
        config: DSDConfig,
        weights: Mapping[str, Path | None] | None = None,
    ) -> None:
        super().__init__()
        if config.weights.representation and not network.config.representation_head:
            raise ValueError(
                "weights.representation needs network.representation_head: true, or set it to 0"
            )
        self.config = config
        self.network = network
        for part in _idle(network, config):
            part.requires_grad_(False)
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.perceptual = None if weights is None else _perceptual(config, weights)

    def turns(self) -> dict[str, LossFn]:
        """Return the one loss of the one network."""
        return {"network": self.loss}

    def loss(self, batch: Batch) -> Losses:
        """Return the weighted terms of the objective, (N,) each; terms of weight 0 are left out.

        Args:
            batch: Images (N, 3, H, W), labels (N,), teacher tokens (N, L, teacher_dim).
        """
        x0, network, weights = batch.images, self.network, self.config.weights
        x0_aug, mask, augmented = self.augment(x0, batch.draws)
        t = self.draw_time(batch.draws)  # (N, 1, 1)
        eps = batch.draws.normal("eps", *self.noise_shape())
        labels = self.drop_labels(batch.labels, batch.draws)

        z0 = network.encode(x0_aug, mask)  # E(x+)
        target, h_target = self._target(x0, z0)
        z_t = paths.interpolate(z0, eps, t)
        h, teacher_pred = network.denoise(z_t)

        losses: Losses = {}
        if weights.distillation:
            losses["distillation"] = self._distillation(h, t, labels, target, eps)
        if weights.velocity:
            z_star = target if self.config.velocity_target == "average" else z0
            v = paths.velocity(z_star, eps).detach()
            losses["velocity"] = self._velocity(h.detach(), t, labels, v, augmented)
        if weights.reconstruction or weights.perceptual:
            x0_pred = network.decode(h)
        if weights.reconstruction:
            losses["reconstruction"] = (x0_pred - x0).abs().mean(dim=(1, 2, 3))
        if weights.perceptual:
            losses["perceptual"] = self._lpips(x0_pred, x0)
        if weights.alignment:
            assert batch.features is not None  # the configuration says that the loss needs them
            losses["alignment"] = one_minus_cosine(teacher_pred.float(), batch.features)
        if weights.representation:
            assert h_target is not None  # the configuration asks for the averaged target
            features = F.layer_norm(h_target.float(), h_target.shape[-1:])
            features_pred = network.predict_features(h).float()
            losses["representation"] = one_minus_cosine(features_pred, features)
        if weights.classification:
            logits = network.classify(z0)
            losses["classification"] = F.cross_entropy(logits, batch.labels, reduction="none")
        return {name: getattr(weights, name) * term for name, term in losses.items()}

    def after_step(self, nimg: int, batch_size: int) -> None:
        """Move the averaged copy towards the online network."""
        num_steps = nimg // batch_size - 1
        decay = warmed_up_decay(self.config.ema_decay, num_steps)
        update_average(self.average, self.network, decay)

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> dict[str, Any]:
        """Return effective ranks (Eq. 3), the margin of Eq. 5, and how well images come back.

        Numbers of heads that no term trains are left out, and so is what is not finite.

        Args:
            batch: As for `loss`; 4,096 tokens or more give ranks of little noise.
        """
        x0, network = batch.images, self.network
        x0_aug, mask, _ = self.augment(x0, batch.draws)
        t = self.draw_time(batch.draws)
        eps = batch.draws.normal("eps", *self.noise_shape())

        online = network.encode(x0_aug, mask)
        target, _ = self._target(x0, online)
        h, _ = network.denoise(paths.interpolate(online, eps, t))
        projection = self._projection(h, t, batch.labels, eps)
        ranks = rank_diagnostics(*(z.flatten(0, 1) for z in (target, online, projection)))
        if ranks and self.config.weights.velocity:
            z0_pred = network.predict_velocity(h, t.flatten(), batch.labels) + eps
            if z0_pred.isfinite().all():
                velocity = effective_rank(z0_pred.flatten(0, 1), centred=False)
                ranks[rank.RANK_VELOCITY] = velocity

        z0 = network.encode(x0)
        h, teacher_pred = network.denoise(z0)
        error = network.decode(h) - x0
        mse = error.square().mean(dim=(1, 2, 3))
        means = {
            rank.RECONSTRUCTION_ERROR: error.abs().mean(),
            rank.PSNR: (10 * (_PEAK**2 / mse).log10()).mean(),
        }
        if self.config.weights.classification:
            hits = network.classify(z0).argmax(dim=1) == batch.labels
            means[rank.CLASS_ACCURACY] = hits.float().mean()
        if self.config.weights.alignment and batch.features is not None:
            cosine = 1 - one_minus_cosine(teacher_pred.float(), batch.features)
            means[rank.TEACHER_COSINE] = cosine.mean()
        values = {name: float(value) for name, value in means.items()}
        return ranks | {name: value for name, value in values.items() if math.isfinite(value)}

    def released(self) -> DSDViT:
        """Return the averaged network."""
        return self.average

    def data_shape(self) -> tuple[int, ...]:
        """Return the shape of an image."""
        return 3, self.network.config.resolution, self.network.config.resolution

    def noise_shape(self) -> tuple[int, ...]:
        """Return (L, C)."""
        return self.network.config.num_tokens, self.network.config.latent_dim

    @torch.no_grad()
    def encode(self, x0: Tensor) -> Tensor:
        """Return the averaged network's latents of images, (N, 3, H, W) -> (N, L, C)."""
        return self.average.encode(x0)

    @torch.no_grad()
    def decode(self, z0: Tensor) -> Tensor:
        """Return the averaged network's images of clean latents, (N, L, C) -> (N, 3, H, W)."""
        h, _ = self.average.denoise(z0)
        return self.average.decode(h)

    @torch.no_grad()
    def sample(self, eps: Tensor, labels: Tensor, solver: SolverConfig, draws: Draws) -> Tensor:
        """Integrate the velocity from noise to a latent with the averaged network, then decode.

        The ViT is told no class, so guidance shares its pass and repeats only the head.

        Args:
            eps: Noise, (N, L, C).
            labels: Class indices, (N,).
            solver: Solver, steps and guidance.
            draws: Of these samples, for solvers that draw noise on the way.
        """
        network = self.average
        null = torch.full_like(labels, network.config.num_classes)

        def velocity(z_t: Tensor, t: float) -> Tensor:
            h, _ = network.denoise(z_t)
            time = torch.full((len(z_t),), t, device=z_t.device)
            v = network.predict_velocity(h, time, labels)
            if not solver.guides_at(t):
                return v
            free = network.predict_velocity(h, time, null)
            return guide(v, free, solver.guidance, solver.guided_channels)

        return self.decode(PROCESSES["linear_path"].solve(velocity, eps, solver, draws))

    def draw_time(self, draws: Draws) -> Tensor:
        """Return flow times, (N, 1, 1)."""
        if self.config.time_distribution == "logit_normal":
            return draws.normal("t", 1, 1).sigmoid()
        return draws.uniform("t", 1, 1)

    def augment(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return what the online branch sees.

        Args:
            x0: Clean images, (N, 3, H, W).
            draws: Their random numbers.

        Returns:
            The images x+, (N, 3, H, W); the patches it must do without, (N, L), or None; and
            which images are augmented at all, (N,).
        """
        config = self.config.augmentation
        if config is None:
            return x0, None, torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        chosen = draws.bernoulli("augmented", config.probability, 1)  # (N, 1)
        low, high = config.mask_ratio
        num_tokens = self.network.config.num_tokens
        ratio = low + (high - low) * draws.uniform("mask_ratio", 1)
        ranks = draws.uniform("mask", num_tokens).argsort(dim=1, stable=True).argsort(dim=1)
        mask = chosen & (ranks < (ratio * num_tokens).round())
        x0_aug = x0
        if config.photometric is not None:
            changed = photometric(x0, draws, config.photometric)
            x0_aug = torch.where(chosen[..., None, None], changed, x0)
        return x0_aug, mask, chosen.squeeze(1)

    def drop_labels(self, labels: Tensor, draws: Draws) -> Tensor:
        """Replace a share of the labels (N,) by the null class."""
        null = self.network.config.num_classes
        return drop_labels(labels, draws, self.config.class_dropout, null)

    def _target(self, x0: Tensor, z0: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the latent that is distilled from, and the averaged network's features if it is.

        Args:
            x0: Clean images, (N, 3, H, W).
            z0: The online latent, (N, L, C); of the clean images unless the target is averaged.
        """
        if self.config.target == "average":
            with torch.no_grad():
                return self.average.encode_with_features(x0)  # sg(E_ema(x))
        return (z0 if self.config.target == "live" else z0.detach()), None

    def _distillation(
        self, h: Tensor, t: Tensor, labels: Tensor, target: Tensor, eps: Tensor
    ) -> Tensor:
        """Return the loss that joins encoder and diffusion, (N,): Eq. 13, or 2 and 8.

        Eq. 9 and 12 are equal up to their weight, but not in gradient once the target is detached:
        the clean latent is compared in latent space, never through the velocity.
        """
        if self.config.prediction == "z0":
            return squared_error(self.network.predict_z0(h, t.flatten(), labels), target)
        v_pred = self.network.predict_velocity(h, t.flatten(), labels)
        return squared_error(v_pred, paths.velocity(target, eps))

    def _projection(self, h: Tensor, t: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
        """Return what the network says the clean latent is, P of Eq. 6, (N, L, C)."""
        if self.config.prediction == "z0":
            return self.network.predict_z0(h, t.flatten(), labels)
        return self.network.predict_velocity(h, t.flatten(), labels) + eps

    def _velocity(
        self, h: Tensor, t: Tensor, labels: Tensor, v: Tensor, augmented: Tensor
    ) -> Tensor:
        """Return the loss of the velocity head, (N,): Eq. 14, from features that are detached.

        Paper: the squared error alone; LightningDiT, whose setup the paper keeps: and 1 - cosine;
        we follow LightningDiT. Paper: z* is E(x+) or E_ema(x), the text does not say. Images that
        stay whole give a velocity field that transports noise to one latent law; they get a weight
        that keeps the expectation over all images.
        """
        v_pred = self.network.predict_velocity(h, t.flatten(), labels)
        loss = squared_error(v_pred, v) + one_minus_cosine(v_pred, v)
        config = self.config.augmentation
        if config is None or self.config.velocity_target == "average":
            return loss
        return loss * ~augmented / (1 - config.probability)

    def _lpips(self, x0_pred: Tensor, x0: Tensor) -> Tensor:
        if self.perceptual is None:
            raise ValueError(
                "this DSD was built without weights of frozen networks: it only samples"
            )
        return self.perceptual(x0_pred, x0)


def _idle(network: DSDViT, config: DSDConfig) -> list[nn.Module | nn.Parameter]:
    """Return what no term of the loss trains: ranks must not wait for its gradient."""
    weights = config.weights
    of_z0 = weights.distillation > 0 and config.prediction == "z0"
    of_head = of_z0 or config.trains_sampling
    used: dict[nn.Module | nn.Parameter, float | bool] = {
        network.z0_out: of_z0,
        network.velocity_out: config.trains_sampling,
        network.dit_layer: of_head,
        network.time_embedding: of_head,
        network.class_embedding: of_head,
        network.image_out: config.trains_decoding,
        network.teacher_out: weights.alignment,
        network.class_out: weights.classification,
        network.mask_token: config.augmentation is not None,
    }
    if network.config.representation_head:
        used[network.representation_out] = weights.representation
    return [part for part, is_used in used.items() if not is_used]


def _perceptual(config: DSDConfig, weights: Mapping[str, Path | None]) -> LPIPS | None:
    """Return the network of LPIPS, if the loss has that term."""
    if not config.weights.perceptual:
        return None
    if config.perceptual_network == "lpips_random":
        return random_lpips()
    vgg16, linear = weights["vgg16"], weights["lpips_vgg"]
    return LPIPS() if vgg16 is None or linear is None else load_lpips(vgg16, linear)
