"""DSD: Diffusion as Self-Distillation (arXiv:2511.14716v1), Sec. 3 and 4.

One ViT is trained from scratch to encode, to denoise and to decode. It predicts the latent that
its own averaged copy sees in the clean image, from a noised latent of the augmented image:

    z_t   = t E(x+) + (1 - t) eps                        not detached: the encoder learns from it
    L_DSD = || P(h(z_t), t, y) - sg(E_ema(x)) ||^2       (Eq. 13), unweighted in t
    L_vel = || V(sg(h(z_t)), t, y) - sg(z* - eps) ||^2   (Eq. 14), and 1 - cosine of the two

beside reconstruction from h(z_t), alignment of h with a teacher's features, and classification
of the latent. The objective here has these five terms; the collapse study, the photometric
augmentations and the terms that need further networks come on top of it.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.data.loader import Batch
from selfdistill.diffusion import paths
from selfdistill.diffusion.config import SolverConfig
from selfdistill.diffusion.guidance import guide
from selfdistill.diffusion.solvers import SOLVERS, time_points
from selfdistill.draws import Draws
from selfdistill.methods.config import DSDConfig
from selfdistill.methods.ema import update_average, warmed_up_decay
from selfdistill.methods.method import Losses, LossFn, Method
from selfdistill.networks.dsd_vit import DSDViT


class DSD(Method):
    """The online network, its averaged copy, the loss that joins them, and the sampler.

    Args:
        network: The one ViT, freshly initialised.
        config: The objective.
    """

    def __init__(self, network: DSDViT, config: DSDConfig) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)

    def turns(self) -> dict[str, LossFn]:
        """Return the one loss of the one network."""
        return {"network": self.loss}

    def loss(self, batch: Batch) -> Losses:
        """Return the weighted terms of the objective, (N,) each.

        Args:
            batch: Images (N, 3, H, W), labels (N,), teacher tokens (N, L, teacher_dim).
        """
        x0, weights = batch.images, self.config.weights
        mask = self.draw_mask(batch.draws)
        t = self.draw_time(batch.draws)  # (N, 1, 1)
        eps = batch.draws.normal("eps", *self.noise_shape())
        labels = self.drop_labels(batch.labels, batch.draws)

        with torch.no_grad():
            z0_target = self.average.encode(x0)  # sg(E_ema(x)), (N, L, C)
        z0 = self.network.encode(x0, mask)  # E(x+)
        z_t = paths.interpolate(z0, eps, t)
        h, teacher_pred = self.network.denoise(z_t)

        z0_pred = self.network.predict_z0(h, t.flatten(), labels)
        v_pred = self.network.predict_velocity(h.detach(), t.flatten(), labels)
        v = paths.velocity(z0, eps).detach()
        x0_pred = self.network.decode(h)
        logits = self.network.classify(z0)

        # Paper: z* in Eq. 14 is E(x+) or E_ema(x), the text does not say. We take E(x) of the
        # images that stay whole, so that the velocity field transports noise to one latent law;
        # the division keeps the expectation over all images.
        whole = ~mask.any(dim=1) / (1 - self.config.mask_probability)
        # Paper: the squared error alone; LightningDiT, whose setup the paper keeps: and 1 - cosine;
        # we follow LightningDiT.
        velocity = _squared_error(v_pred, v) + _one_minus_cosine(v_pred, v)
        return {
            "distillation": weights.distillation * _squared_error(z0_pred, z0_target),
            "velocity": weights.velocity * whole * velocity,
            "reconstruction": weights.reconstruction * (x0_pred - x0).abs().mean(dim=(1, 2, 3)),
            "alignment": weights.alignment
            * _one_minus_cosine(teacher_pred.float(), batch.features),
            "classification": weights.classification
            * F.cross_entropy(logits, batch.labels, reduction="none"),
        }

    def after_step(self, nimg: int, batch_size: int) -> None:
        """Move the averaged copy towards the online network."""
        num_steps = nimg // batch_size - 1
        decay = warmed_up_decay(self.config.ema_decay, num_steps)
        update_average(self.average, self.network, decay)

    def noise_shape(self) -> tuple[int, ...]:
        """Return (L, C)."""
        return self.network.config.num_tokens, self.network.config.latent_dim

    @torch.no_grad()
    def sample(self, eps: Tensor, labels: Tensor, solver: SolverConfig) -> Tensor:
        """Integrate the velocity from noise to a latent with the averaged network, then decode.

        The ViT is told no class, so guidance shares its pass and repeats only the head.

        Args:
            eps: Noise, (N, L, C).
            labels: Class indices, (N,).
            solver: Solver, steps and guidance.
        """
        network = self.average
        null = torch.full_like(labels, network.config.num_classes)

        def velocity(z_t: Tensor, t: float) -> Tensor:
            h, _ = network.denoise(z_t)
            time = torch.full((len(z_t),), t, device=z_t.device)
            v = network.predict_velocity(h, time, labels)
            if not solver.guides_at(t):
                return v
            return guide(v, network.predict_velocity(h, time, null), solver.guidance)

        times = time_points(solver.num_steps, solver.timestep_shift)
        z0 = SOLVERS[solver.solver](velocity, eps, times)
        h, _ = network.denoise(z0)
        return network.decode(h)

    def draw_time(self, draws: Draws) -> Tensor:
        """Return flow times, (N, 1, 1)."""
        if self.config.time_distribution == "logit_normal":
            return draws.normal("t", 1, 1).sigmoid()
        return draws.uniform("t", 1, 1)

    def draw_mask(self, draws: Draws) -> Tensor:
        """Return which patches the online branch must do without, (N, L); some images keep all."""
        low, high = self.config.mask_ratio
        num_tokens = self.network.config.num_tokens
        ratio = low + (high - low) * draws.uniform("mask_ratio", 1)
        masked = draws.bernoulli("masked", self.config.mask_probability, 1)
        ranks = draws.uniform("mask", num_tokens).argsort(dim=1, stable=True).argsort(dim=1)
        return masked & (ranks < (ratio * num_tokens).round())

    def drop_labels(self, labels: Tensor, draws: Draws) -> Tensor:
        """Replace a share of the labels (N,) by the null class."""
        dropped = draws.bernoulli("class_dropout", self.config.class_dropout, 1).squeeze(1)
        return torch.where(dropped, self.network.config.num_classes, labels)


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens and channels, (N, L, C) -> (N,)."""
    return (prediction - target).square().mean(dim=(1, 2))


def _one_minus_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cosine over channels, mean over tokens, (N, L, C) -> (N,)."""
    return 1 - F.cosine_similarity(prediction, target, dim=-1).mean(dim=1)
