"""Terms of score identity distillation (SiD, arXiv:2404.04057) and of SiDA (arXiv:2410.14919).

Where the papers and the code of their checkpoints differ, these are the code's. Every term is a sum
over an image's pixels or stands beside such a sum, (N,); the loop takes the mean over images.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.diffusion.process import beside

_NEAREST = 1e-5
_LARGEST_LOGIT = 10.0  # beyond, the generator's logits have no gradient


class Denoised(NamedTuple):
    """What the two frozen networks make of a generated image with noise.

    Attributes:
        f_phi: Of the teacher, (N, ...).
        f_psi: Of the fake-score network, (N, ...).
    """

    f_phi: Tensor
    f_psi: Tensor


def pixel_weight(x_g: Tensor, f_phi: Tensor) -> Tensor:
    """Return 1 / mean |x_g - f_phi|, (N,): by it far and near images weigh alike; no gradient.

    Args:
        x_g: Generated images, (N, ...).
        f_phi: The teacher's, (N, ...).
    """
    distance = (x_g - f_phi).detach().float().abs().flatten(1).mean(dim=1)
    return 1 / distance.clamp(min=_NEAREST)


def score_identity(x_g: Tensor, denoised: Denoised, alpha: float) -> Tensor:
    """Return (f_phi - f_psi) ((f_phi - x_g) - alpha (f_phi - f_psi)) / mean |x_g - f_phi|.

    SiD's Eq. 23, pixelwise, the estimate of a Fisher divergence by which the generator learns;
    gradients go through both networks to the image. It may be negative, and tells nothing of
    convergence.

    Args:
        x_g: Generated images, (N, ...).
        denoised: Of the images with noise.
        alpha: Weight of the biased part of the estimate.

    Returns:
        (N, ...).
    """
    gap = denoised.f_phi - denoised.f_psi
    weight = beside(x_g, pixel_weight(x_g, denoised.f_phi))
    return gap * ((denoised.f_phi - x_g) - alpha * gap) * weight


def deception(x_g: Tensor, f_phi: Tensor, logits: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return the generator's adversarial term, (N,): how little the batch looks real (SiDA, Eq. 8).

    The logits of all images and places are averaged before they are weighted image by image, in
    the place of a pixel: SiDA's fakeness of a batch.

    Args:
        x_g: Generated images, (N, ...).
        f_phi: The teacher's, of them with noise, (N, ...).
        logits: Of the fake-score network's encoder, of the same, (N, 1, ...).
        kept: Which of the images count, (N,); None: all.
    """
    clamped = logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return _mean(F.softplus(-clamped), kept) * pixel_weight(x_g, f_phi)


def denoising(x_g: Tensor, f_psi: Tensor, weight: Tensor, log_variance: Tensor | None) -> Tensor:
    """Return the fake-score network's weighted squared error, pixelwise, (N, ...).

    Args:
        x_g: Generated images, without gradient, (N, ...).
        f_psi: The fake-score network's, of them with noise, (N, ...).
        weight: EDM's, (N,).
        log_variance: u of EDM2: the error is divided by e^u, and u added; None: the network has
            none.
    """
    error = beside(x_g, weight) * (f_psi - x_g).square()
    if log_variance is None:
        return error
    u = beside(x_g, log_variance)
    return error / u.exp() + u


def discrimination(
    of_real: Tensor, of_fake: Tensor, weight: Tensor, kept: Tensor | None = None
) -> Tensor:
    """Return the discriminator's cross-entropy, weighted image by image, (N,) (SiDA, Eq. 9).

    Args:
        of_real: Logits of real images with noise, (N, 1, ...).
        of_fake: Of generated ones with the same noise.
        weight: EDM's, (N,), over e^u if there is one.
        kept: Which of the images count, (N,); None: all.
    """
    entropy = (_mean(F.softplus(-of_real), kept) + _mean(F.softplus(of_fake), kept)) / 2
    return entropy * weight


def whole_images(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return which images (N,) have no NaN in any tensor (N, ...), and the tensors, 0 for others.

    A NaN must not enter a formula: a gradient of zero times it would be NaN.
    """
    flags = [~tensor.detach().flatten(1).isnan().any(dim=1) for tensor in tensors]
    kept = torch.stack(flags).all(dim=0)
    return kept, [one.where(kept.view(-1, *[1] * (one.ndim - 1)), 0) for one in tensors]


def _mean(values: Tensor, kept: Tensor | None) -> Tensor:
    """Return the mean over images, and all that they have, of those that count."""
    of_image = values.flatten(1).mean(dim=1)
    if kept is None:
        return of_image.mean()
    return of_image.where(kept, 0).sum() / kept.sum().clamp(min=1)
