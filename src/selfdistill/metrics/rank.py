"""Effective rank of latents, and what a training log says of it. torch is imported in use only.

"Diffusion as Self-Distillation: End-to-End Latent Diffusion In One Model", 2025,
arXiv:2511.14716v1, Eq. 3, 5 and Fig. 2. The effective rank is "The Effective Rank: A Measure of
Effective Dimensionality", Roy and Vetterli, EUSIPCO 2007.

A record of the training log is {"nimg": int, "loss": float, "network/<term>": float, ...,
"lr": float, "grad_norm": float, "skipped_steps": int, "diagnostics": {...}}; the constants below
are its names. Logs of methods that have no diagnostics lack that key.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

    from selfdistill.metrics.moments import Moments

NIMG: Final = "nimg"
RECONSTRUCTION_LOSS: Final = "network/reconstruction"
DIAGNOSTICS: Final = "diagnostics"

# Effective ranks: of the target latent, of the online latent of the augmented image, and of what
# the network predicts from the noised online latent.
RANK_TARGET: Final = "rank_target"
RANK_TARGET_CENTRED: Final = "rank_target_centred"
RANK_ONLINE: Final = "rank_online"
RANK_ONLINE_CENTRED: Final = "rank_online_centred"
RANK_PROJECTION: Final = "rank_projection"
RANK_PROJECTION_CENTRED: Final = "rank_projection_centred"
RANK_VELOCITY: Final = "rank_velocity"  # of velocity plus noise, where a head predicts velocities
RANK_MARGIN: Final = "rank_margin"  # rank_target - rank_projection: Eq. 5 holds where it is > 0

# Spread of the latents, in their own unit; 0 where all are one point.
STD_TARGET: Final = "std_target"
STD_ONLINE: Final = "std_online"
CHANNEL_STD_ONLINE: Final = "channel_std_online"  # a list, one number per channel

RECONSTRUCTION_ERROR: Final = "reconstruction_error"  # mean absolute, of clean images at t = 1
PSNR: Final = "psnr"  # dB, of the same images
TEACHER_COSINE: Final = "teacher_cosine"  # -1 to 1
CLASS_ACCURACY: Final = "class_accuracy"  # 0 to 1

_ROUNDING = 1e-14  # of a mean in float64, relative to the length of the vectors


def effective_rank(vectors: "Tensor", *, centred: bool) -> float:
    """Return how many dimensions vectors fill.

    erank(Z) = exp(-Σ p_i log p_i),  p_i = σ_i / Σ σ_j    (Eq. 3)

    with σ the singular values of Z that are not zero. They are taken in float64 as roots of the
    eigenvalues of the (d, d) matrix Zᵀ Z, so that Z itself is read once, in blocks. Rounding hides
    singular values below √(d ε) of the largest, 6e-8 for d = 16: these count as zero.

    Where all singular values are zero the sum is empty and the rank 1, its least value, as for
    vectors on one line: that is what vectors in a single point have when centred. Vectors that
    differ only by the rounding of a network keep a centred rank, up to d, which means nothing;
    their standard deviation tells.

    Args:
        vectors: Z, (n, d), n >= 2, any floating type, on any device; usually n >= d.
        centred: Subtract the mean vector first. DSD mentions no centring: without it a cloud far
            from zero and small has rank 1, with it d.

    Returns:
        1 to min(n, d), up to rounding; the same for any scale of the vectors.

    Raises:
        ValueError: If the vectors are not (n, d), n is below 2, or a number is not finite.
    """
    return _effective_rank(_moments(vectors), centred=centred)


def rank_diagnostics(target: "Tensor", online: "Tensor", projection: "Tensor") -> dict[str, Any]:
    """Return what Eq. 5 and Fig. 2 ask about latents: effective ranks and standard deviations.

    A standard deviation is taken of each channel over the vectors, with divisor n - 1; the one of
    all channels is the root of the mean of their squares. So it is 0 for vectors in one point even
    where each of them is normalised.

    Args:
        target: Latents that the prediction is held against, (n, d).
        online: Latents of the images as the encoder in training sees them, (n, d).
        projection: What the network predicts from the noised online latents, (n, d).

    Returns:
        Floats by name, the names `RANK_*`, `STD_TARGET` and `STD_ONLINE`, and a list of d floats
        as `CHANNEL_STD_ONLINE`. Nothing at all where a number is not finite: a training that
        skips such steps must not end at looking at them.

    Raises:
        ValueError: If one of them is not (n, d), or n is below 2.
    """
    if not all(bool(of.isfinite().all()) for of in (target, online, projection)):
        return {}
    target_, online_, projection_ = (_moments(of) for of in (target, online, projection))
    rank_target, rank_projection = (
        _effective_rank(of, centred=False) for of in (target_, projection_)
    )
    return {
        RANK_TARGET: rank_target,
        RANK_TARGET_CENTRED: _effective_rank(target_, centred=True),
        RANK_ONLINE: _effective_rank(online_, centred=False),
        RANK_ONLINE_CENTRED: _effective_rank(online_, centred=True),
        RANK_PROJECTION: rank_projection,
        RANK_PROJECTION_CENTRED: _effective_rank(projection_, centred=True),
        RANK_MARGIN: rank_target - rank_projection,
        STD_TARGET: _std(target_),
        STD_ONLINE: _std(online_),
        CHANNEL_STD_ONLINE: online_.sigma.diagonal().sqrt().tolist(),
    }


def collapse_warning(records: Sequence[Mapping[str, Any]], patience: int) -> str | None:
    """Return a warning when latents have been about to collapse for `patience` records.

    erank(target) > erank(projection)    (Eq. 5)

    A function of the log alone: asked after each record, it warns once in every unbroken series of
    records that violate Eq. 5, in a training that was resumed as in one that was not.

    Args:
        records: The training log up to now.
        patience: Length of the series at which it warns, at least 1.

    Returns:
        One line for the user, where the last `patience` records have a negative rank margin and
        the one before them, if any, has not; else None. A record without diagnostics has none.
    """
    assert patience > 0
    streak = records[-patience:]
    before = records[-patience - 1 : -patience]
    if len(streak) < patience or not all(map(_violates, streak)) or any(map(_violates, before)):
        return None
    first, last = streak[0], streak[-1]
    target, projection = (last[DIAGNOSTICS][name] for name in (RANK_TARGET, RANK_PROJECTION))
    return (
        f"The latents may be collapsing: after {last[NIMG]:,} images the effective rank of the "
        f"target latent is {target:.3g}, below the projection's, {projection:.3g}, as in every "
        f"record since {first[NIMG]:,} images (DSD, Eq. 5 is violated). What usually helps: "
        "normalised latents, an averaged target, augmentation; see docs/dsd.md"
    )


def _violates(record: Mapping[str, Any]) -> bool:
    """Return whether a record says that Eq. 5 is violated."""
    return bool(record.get(DIAGNOSTICS, {}).get(RANK_MARGIN, 0) < 0)


def _moments(vectors: "Tensor") -> "Moments":
    """Return mean and covariance in float64, on the CPU."""
    from selfdistill.metrics.moments import RunningMoments

    if not vectors.isfinite().all():
        raise ValueError(f"{len(vectors)} vectors hold NaN or infinite values: they have no rank")
    running = RunningMoments()
    running.update(vectors)
    return running.finish()


def _effective_rank(moments: "Moments", *, centred: bool) -> float:
    import torch

    scatter = moments.sigma * (moments.num - 1)
    gram = scatter + moments.num * moments.mu.outer(moments.mu)
    eigenvalues = torch.linalg.eigvalsh(scatter if centred else gram)
    rounding = len(gram) * torch.finfo(gram.dtype).eps * eigenvalues.max()
    nonzero = eigenvalues > rounding.clamp(min=_ROUNDING**2 * float(gram.trace()))
    sigma = eigenvalues[nonzero].sqrt()
    p = sigma / sigma.sum()
    return float((-(p * p.log()).sum()).exp())


def _std(moments: "Moments") -> float:
    return float(moments.sigma.diagonal().mean().sqrt())
