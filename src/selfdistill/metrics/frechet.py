"""Fréchet distance between Gaussians fitted to features. torch is imported in use only.

"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", Heusel et al.,
2017, arXiv:1706.08500v6, Experiments: "Performance Measure".
"""

from typing import TYPE_CHECKING

from selfdistill.metrics.metric import Measurement

if TYPE_CHECKING:
    from selfdistill.metrics.moments import Moments
    from selfdistill.metrics.subject import Subject


def frechet_distance(a: "Moments", b: "Moments") -> float:
    """Return the Fréchet distance between two Gaussians.

    d² = |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2))    (Eq. 6)

    The matrix S_a S_b is not symmetric, but with a factor S_a = A Aᵀ it has the eigenvalues of the
    symmetric Aᵀ S_b A, so tr (S_a S_b)^(1/2) = Σ √eig(Aᵀ S_b A). That needs no matrix square root
    and is right for singular covariances too: eigenvalues that rounding made negative count as 0.

    Args:
        a: Moments of one set of features, D wide.
        b: Moments of the other, D wide.

    Returns:
        The squared distance, as every FID is; zero up to rounding if the moments are equal.

    Raises:
        ValueError: If the widths differ.
    """
    import torch

    if a.mu.shape != b.mu.shape:
        raise ValueError(f"features differ in width: {len(a.mu)} and {len(b.mu)}")
    variances, axes = torch.linalg.eigh(a.sigma)
    A = axes * variances.clamp(min=0).sqrt()  # (D, D)
    root_trace = torch.linalg.eigvalsh(A.T @ b.sigma @ A).clamp(min=0).sqrt().sum()
    distance = (a.mu - b.mu).square().sum() + a.sigma.trace() + b.sigma.trace() - 2 * root_trace
    return float(distance)


def measure(subject: "Subject") -> Measurement:
    """Compare samples with real images in the features of the subject's extractor.

    The baselines are the distances of pure noise ("noise") and of one half of the real images from
    the other ("real_halves").
    """
    return Measurement(
        value=frechet_distance(subject.moments, subject.reference_moments),
        baselines={
            name: float(subject.reference[f"frechet_{name}"]) for name in ("noise", "real_halves")
        },
    )
