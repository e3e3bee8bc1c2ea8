"""How much of the samples lies among the real images, and how much of these among the samples.

"Improved Precision and Recall Metric for Assessing Generative Models", Kynkäänniemi et al., 2019,
arXiv:1904.06991v3, Section 2, in the arithmetic of ADM's evaluator (Dhariwal and Nichol, 2021,
arXiv:2105.05233) or in float32.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from selfdistill.metrics.full_precision import full_precision

NEIGHBOURS = 3  # ADM's evaluator; the paper's k
_STRIP = 1000  # rows of a block that are in float32 at a time

Distances = Callable[[Tensor, Tensor], Tensor]


def precision_recall(
    reference: Tensor,
    samples: Tensor,
    *,
    arithmetic: Literal["float16", "float32"],
    k: int = NEIGHBOURS,
    block: int = 10_000,
) -> tuple[float, float]:
    """Return improved precision and recall.

    f(φ, Φ) = 1 if |φ - φ'| <= |φ' - NN_k(φ', Φ)| for some φ' in Φ, else 0    (Eq. 1)
    precision = Σ_{φ in Φ_g} f(φ, Φ_r) / |Φ_g|
    recall    = Σ_{φ in Φ_r} f(φ, Φ_g) / |Φ_r|    (Eq. 2)

    NN_k is the k-th nearest other vector: the (k+1)-th smallest distance within a set, each vector
    being in its own way with 0. All distances are squared, |u|² - 2 u·v + |v|², and 0 at least.

    "float16" is the arithmetic of published numbers. ADM's evaluator rounds features, norms,
    products and each sum of these to half precision; only a block of 10,000 x 10,000 distances that
    holds a value which is not finite is taken in float32 instead, all of it. Ties that rounding
    makes raise both shares, by how much depends on the features: on ADM's own samples others
    measured 0.001 in precision and up to 0.0024 in recall (README of
    lavinal712/ADM-evaluation-suite-pytorch). The order in which TensorFlow adds up a norm in half
    precision is not known to others, so that single bits, and single images at the rim of a ball,
    may differ from its numbers. "float32" means what the formula says.

    Args:
        reference: Features of real images, (M, D).
        samples: Features of samples, (N, D).
        arithmetic: In which distances are compared.
        k: Neighbour that a ball reaches to.
        block: Rows and columns of distances that are in memory at a time, on the device of the
            samples. In "float16" it belongs to the definition if halves overflow; in "float32" it
            changes nothing but rounding.

    Returns:
        Precision, the share of samples within the ball of a real image; and recall, the share of
        real images within the ball of a sample.

    Raises:
        ValueError: If a set has fewer than k + 1 vectors, the widths differ, or a feature is not
            finite.
    """
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        raise ValueError(
            "features must be (M, D) and (N, D), "
            f"got {list(reference.shape)} and {list(samples.shape)}"
        )
    for name, features in (("real images", reference), ("samples", samples)):
        if len(features) < k + 1:
            raise ValueError(f"k = {k} needs {k + 1} {name} or more, got {len(features)}")
        if not features.isfinite().all():
            raise ValueError(f"the features of the {name} hold NaN or infinite values")
    distances = _half_distances if arithmetic == "float16" else _distances
    reference = reference.to(samples.device)
    with torch.no_grad(), full_precision():
        reference_radii = _radii(reference, distances, k, block)
        sample_radii = _radii(samples, distances, k, block)
        is_real = samples.new_zeros(len(samples), dtype=torch.bool)
        is_covered = samples.new_zeros(len(reference), dtype=torch.bool)
        for rows in _slices(len(reference), block):
            for columns in _slices(len(samples), block):
                d = distances(reference[rows], samples[columns])  # (m, n)
                is_real[columns] |= (d <= reference_radii[rows, None]).any(0)
                is_covered[rows] |= (d <= sample_radii[columns]).any(1)
                del d  # before the next is made
    return float(is_real.double().mean()), float(is_covered.double().mean())


def _radii(features: Tensor, distances: Distances, k: int, block: int) -> Tensor:
    """Return the squared distance of each vector to its k-th nearest other, (N,), float32."""
    radii = features.new_empty(len(features), dtype=torch.float32)
    for rows in _slices(len(features), block):
        nearest = features.new_empty((len(features[rows]), 0), dtype=torch.float32)
        for columns in _slices(len(features), block):
            d = distances(features[rows], features[columns])
            smallest = _smallest(d, k + 1)
            del d  # before the next is made
            nearest = _smallest(torch.cat([nearest, smallest], 1), k + 1)
        radii[rows] = nearest[:, k]
    return radii


def _smallest(d: Tensor, num: int) -> Tensor:
    """Return the `num` smallest of each row in ascending order, or all if there are fewer."""
    num = min(num, d.shape[1])
    return torch.cat([strip.float().topk(num, largest=False)[0] for strip in d.split(_STRIP)])


def _distances(u: Tensor, v: Tensor) -> Tensor:
    """Return |u|² - 2 u·v + |v|², (m, n), in float32."""
    u, v = u.float(), v.float()
    d = torch.addmm(u.square().sum(1, keepdim=True), u, v.T, alpha=-2)
    return d.add_(v.square().sum(1)).clamp_(min=0)


def _half_distances(u: Tensor, v: Tensor) -> Tensor:
    """Return |u|² - 2 u·v + |v|², (m, n), in float16, each operation rounded to it.

    If a distance is not finite, all of them are those of `_distances`, in float32.
    """
    u_half, v_half = u.half(), v.half()
    # Squares are rounded; a sum is rounded once, in the end, as nearly every implementation does.
    u_norm, v_norm = (x.square().sum(1, dtype=torch.float32).half() for x in (u_half, v_half))
    d = u_half.new_empty(len(u), len(v))
    v_float = v_half.float()  # a product of halves is taken in float32 and rounded on any device
    for rows in _slices(len(u), _STRIP):
        product = (u_half[rows].float() @ v_float.T).half()
        d[rows] = (u_norm[rows, None] - 2 * product + v_norm).clamp_(min=0)
        if not d[rows].isfinite().all():
            return _distances(u, v)
    return d


def _slices(num: int, size: int) -> Iterator[slice]:
    for start in range(0, num, size):
        yield slice(start, start + size)
