import numpy as np
import pytest
import torch

from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments


def gaussian(mu: list[float], sigma: torch.Tensor) -> Moments:
    return Moments(torch.tensor(mu, dtype=torch.float64), sigma.to(torch.float64), 100)


def fitted(features: torch.Tensor, batch_size: int = 7) -> Moments:
    running = RunningMoments()
    for batch in features.split(batch_size):
        running.update(batch)
    return running.finish()


def random_features(num: int, width: int, seed: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    source = torch.randn(num, rank or width, **options)
    return source @ torch.randn(rank or width, width, **options) + 50


def nuclear_norm_distance(a: Moments, b: Moments) -> float:
    """The same distance by another route: tr √(S_a S_b) is the nuclear norm of √S_a √S_b."""
    roots = []
    for sigma in (a.sigma, b.sigma):
        variances, axes = np.linalg.eigh(sigma.numpy())
        roots.append(axes * np.sqrt(variances.clip(0)) @ axes.T)
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    mean = np.square(a.mu.numpy() - b.mu.numpy()).sum()
    return float(mean + np.trace(a.sigma.numpy()) + np.trace(b.sigma.numpy()) - 2 * cross)


def test_distance_between_commuting_gaussians_has_its_closed_form():
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    std_a, std_b = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 2, 1, 0.5])
    a = gaussian([0, 0, 0, 0], rotation @ torch.diag(std_a**2).double() @ rotation.T)
    b = gaussian([1, 2, 0, 2], rotation @ torch.diag(std_b**2).double() @ rotation.T)
    expected = 9 + float((std_a - std_b).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-10)


def test_distance_between_singular_gaussians_has_its_closed_form():
    a = gaussian([0, 0, 0], torch.diag(torch.tensor([4.0, 0, 1])))
    b = gaussian([0, 3, 0], torch.diag(torch.tensor([1.0, 9, 0])))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 9 + 1, abs=1e-7)


def test_distance_between_points_is_their_squared_distance():
    zero = torch.zeros(2, 2)
    assert frechet_distance(gaussian([0, 0], zero), gaussian([3, 4], zero)) == 25


@pytest.mark.parametrize("num", [500, 12])
def test_distance_to_itself_is_zero_also_with_fewer_images_than_features(num):
    moments = fitted(random_features(num, 24, seed=0))
    assert abs(frechet_distance(moments, moments)) < 1e-7 * float(moments.sigma.trace())


@pytest.mark.parametrize("rank", [24, 10])
def test_distance_is_symmetric_and_agrees_with_the_singular_values(rank):
    a = fitted(random_features(300, 24, seed=1, rank=rank))
    b = fitted(random_features(200, 24, seed=2, rank=rank))
    scale = float(a.sigma.trace())
    assert abs(frechet_distance(a, b) - frechet_distance(b, a)) < 1e-7 * scale
    assert abs(frechet_distance(a, b) - nuclear_norm_distance(a, b)) < 1e-7 * scale


def test_features_of_different_width_are_refused():
    a, b = gaussian([0, 0], torch.eye(2)), gaussian([0], torch.eye(1))
    with pytest.raises(ValueError, match="differ in width: 2 and 1"):
        frechet_distance(a, b)
