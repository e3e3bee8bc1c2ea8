"""Fréchet distance between Gaussians fitted to features. torch and SciPy are imported in use only.

"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", Heusel et al.,
2017, arXiv:1706.08500v6, Experiments: "Performance Measure".
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from selfdistill.metrics.moments import Moments


def frechet_distance(a: "Moments", b: "Moments") -> float:
    """Return the Fréchet distance between two Gaussians.

    d² = |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2))    (Eq. 6)

    No matrix square root is taken. With factors S_a = A Aᵀ and S_b = B Bᵀ, the matrix S_a S_b has
    the eigenvalues of Aᵀ B Bᵀ A, which are the squared singular values of Aᵀ B; so
    tr (S_a S_b)^(1/2) = Σ svd(Aᵀ B). Taken from Aᵀ B itself they keep the digits that any form with
    squares, as eig(Aᵀ S_b A), loses below 1e-8 of the largest: covariances may be singular or
    nearly so, as those of fewer images than features are.

    Args:
        a: Moments of one set of features, D wide.
        b: Moments of the other, D wide.

    Returns:
        The squared distance, as every FID is; zero up to rounding if the moments are equal.

    Raises:
        ValueError: If the widths differ, a number is not finite, or a covariance is not one.
    """
    from scipy.linalg import svdvals
    from scipy.linalg.blas import dtrmm

    (mu_a, sigma_a), (mu_b, sigma_b) = _arrays(a, b)
    A, B = _factor(sigma_a), _factor(sigma_b)
    triangular = A.shape == B.shape == sigma_a.shape and not np.triu(A, 1).any()
    cross = dtrmm(1.0, A, B, lower=1, trans_a=1) if triangular else A.T @ B
    root_trace = svdvals(cross, overwrite_a=True, check_finite=False).sum() if cross.size else 0.0
    mean = np.square(mu_a - mu_b).sum()
    return float(mean + sigma_a.trace() + sigma_b.trace() - 2 * root_trace)


def frechet_distance_sqrtm(a: "Moments", b: "Moments") -> float:
    """Return what published evaluators print: Eq. 6 with SciPy's matrix square root.

    It is slower than `frechet_distance`, and where a covariance is singular less exact: to compare
    digit by digit, and to measure against. Only its real part is kept; if the root is not finite,
    1e-6 is added to both diagonals, as ADM's evaluator and its ancestors do.

    Args:
        a: Moments of one set of features, D wide.
        b: Moments of the other, D wide.

    Raises:
        ValueError: If the widths differ, or a number is not finite.
    """
    import warnings

    from scipy.linalg import LinAlgWarning, sqrtm

    (mu_a, sigma_a), (mu_b, sigma_b) = _arrays(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # of singular products: they are expected
        root = sqrtm(sigma_a @ sigma_b)
        if not np.isfinite(root).all():
            eps = 1e-6 * np.eye(len(mu_a))
            root = sqrtm((sigma_a + eps) @ (sigma_b + eps))
    mean = np.square(mu_a - mu_b).sum()
    return float(mean + sigma_a.trace() + sigma_b.trace() - 2 * root.trace().real)


def _arrays(a: "Moments", b: "Moments") -> list[tuple[np.ndarray, np.ndarray]]:
    """Return means and covariances in float64, the same width and finite."""
    if a.mu.shape != b.mu.shape:
        raise ValueError(f"features differ in width: {len(a.mu)} and {len(b.mu)}")
    arrays = [(of.mu.double().cpu().numpy(), of.sigma.double().cpu().numpy()) for of in (a, b)]
    if not all(np.isfinite(array).all() for pair in arrays for array in pair):
        raise ValueError("a mean or a covariance holds NaN or infinite values")
    return arrays


def _factor(sigma: np.ndarray) -> np.ndarray:
    """Return A, (D, rank), with A Aᵀ = `sigma`.

    Cholesky's factor, lower triangular, and if there is none, since `sigma` is singular, the one
    with pivots, cut at its rank. That is taken of the correlations, so that a feature of small
    variance is not mistaken for none.
    """
    from scipy.linalg.lapack import dpotrf, dpstrf

    L, info = dpotrf(sigma.T, lower=1, clean=1)  # symmetric; LAPACK's order is Fortran's
    if not info:
        return L
    variances = sigma.diagonal()
    if (variances < 0).any():
        raise ValueError(f"a covariance has a negative variance, {variances.min():.3g}")
    (live,) = variances.nonzero()
    if not live.size:
        return np.zeros((len(sigma), 0))
    std = np.sqrt(variances[live])
    correlations = sigma[np.ix_(live, live)] / std[:, None] / std
    L, pivots, rank, _ = dpstrf(correlations, lower=1)
    A = np.zeros((len(sigma), rank))
    A[live[pivots - 1]] = std[pivots - 1, None] * np.tril(L[:, :rank])
    return A
