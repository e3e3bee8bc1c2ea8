import numpy as np
import pytest
import scipy.linalg
import torch

from selfdistill.metrics.frechet import frechet_distance, frechet_distance_sqrtm
from selfdistill.metrics.moments import Moments, RunningMoments

WIDTH = 96
FEATURES = [
    "gaussian",
    "far_from_zero",
    "decaying",
    "decaying_by_axis",
    "two_levels",
    "rectified",
    "low_rank",
    "repeated",
    "convolutional",
]
NUMS = [250, WIDTH // 2]  # more vectors than features, and fewer


def gaussian(mu: list[float], sigma: torch.Tensor) -> Moments:
    return Moments(torch.tensor(mu, dtype=torch.float64), sigma.to(torch.float64), 100)


def fitted(features: np.ndarray) -> Moments:
    running = RunningMoments()
    running.update(torch.from_numpy(features))
    return running.finish()


def features_of(kind: str, num: int, seed: int) -> np.ndarray:
    """Return `num` vectors of a distribution that shares its axes with every other `seed`."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(7)
    white = own.standard_normal((num, WIDTH)) + 0.1 * seed
    rotation, _ = np.linalg.qr(shared.standard_normal((WIDTH, WIDTH)))
    match kind:
        case "gaussian":
            return white @ shared.standard_normal((WIDTH, WIDTH))
        case "far_from_zero":
            return white + 1e4
        case "decaying":  # variances down to 1e-16
            return white * np.logspace(0, -8, WIDTH) @ rotation
        case "decaying_by_axis":  # and down to 1e-24
            return white * np.logspace(-12, 0, WIDTH)
        case "two_levels":  # half of the variances are 1e-12
            return white * np.where(np.arange(WIDTH) % 2, 1, 1e-6) @ rotation
        case "rectified":  # a third of the features is dead
            bias = np.where(np.arange(WIDTH) % 3, -3 * shared.random(WIDTH), -1000)
            return np.maximum(white[:, :16] @ shared.standard_normal((16, WIDTH)) + bias, 0)
        case "low_rank":
            return white[:, :20] @ shared.standard_normal((20, WIDTH))
        case "repeated":
            return np.concatenate([white[:, ::2], white[:, ::2]], 1)
        case "convolutional":
            images = torch.from_numpy(white[:, :75]).reshape(-1, 3, 5, 5)
            filters = torch.from_numpy(shared.standard_normal((WIDTH, 3, 3, 3)))
            return torch.conv2d(images, filters).relu().mean((2, 3)).numpy()
    raise AssertionError(kind)


def distance_of_features(x: np.ndarray, y: np.ndarray) -> float:
    """The same distance with no covariance: X = Q_x R_x, so √S_x √S_y has the svd of R_x R_yᵀ."""
    roots = [
        scipy.linalg.qr((of - of.mean(0)) / np.sqrt(len(of) - 1), mode="economic")[1]
        for of in (x, y)
    ]
    cross = scipy.linalg.svdvals(roots[0] @ roots[1].T).sum()
    traces = sum(np.square(root).sum() for root in roots)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + traces - 2 * cross)


def test_distance_between_commuting_gaussians_has_its_closed_form():
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    std_a, std_b = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 2, 1, 0.5])
    a = gaussian([0, 0, 0, 0], rotation @ torch.diag(std_a**2).double() @ rotation.T)
    b = gaussian([1, 2, 0, 2], rotation @ torch.diag(std_b**2).double() @ rotation.T)
    expected = 9 + float((std_a - std_b).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-13)
    assert frechet_distance_sqrtm(a, b) == pytest.approx(expected, rel=1e-12)


def test_distance_between_singular_gaussians_has_its_closed_form():
    a = gaussian([0, 0, 0], torch.diag(torch.tensor([4.0, 0, 1])))
    b = gaussian([0, 3, 0], torch.diag(torch.tensor([1.0, 9, 0])))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 9 + 1, rel=1e-14)


def test_distance_between_points_is_their_squared_distance():
    zero = torch.zeros(2, 2)
    assert frechet_distance(gaussian([0, 0], zero), gaussian([3, 4], zero)) == 25


def test_distance_between_a_point_and_a_gaussian_adds_its_variance():
    point, spread = gaussian([0, 0], torch.zeros(2, 2)), gaussian([3, 4], torch.eye(2))
    assert frechet_distance(point, spread) == frechet_distance(spread, point) == 27


def test_distance_of_a_single_feature_has_its_closed_form():
    a, b = gaussian([1], torch.tensor([[4.0]])), gaussian([3], torch.tensor([[0.25]]))
    assert frechet_distance(a, b) == pytest.approx(4 + 1.5**2)


@pytest.mark.parametrize("num", NUMS)
@pytest.mark.parametrize("kind", FEATURES)
def test_distance_to_itself_is_zero(kind, num):
    moments = fitted(features_of(kind, num, seed=1))
    assert abs(frechet_distance(moments, moments)) < 1e-13 * float(moments.sigma.trace())


@pytest.mark.parametrize("num", NUMS)
@pytest.mark.parametrize("kind", FEATURES)
def test_distance_agrees_with_the_features_without_covariances(kind, num):
    x, y = features_of(kind, num, seed=1), features_of(kind, 250, seed=2)
    a, b = fitted(x), fitted(y)
    assert frechet_distance(a, b) == pytest.approx(distance_of_features(x, y), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("num", NUMS)
@pytest.mark.parametrize("kind", FEATURES)
def test_distance_agrees_also_if_one_covariance_is_well_and_the_other_ill_conditioned(kind, num):
    x, y = features_of(kind, num, seed=1), features_of("gaussian", 250, seed=2)
    expected = distance_of_features(x, y)
    assert frechet_distance(fitted(x), fitted(y)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(fitted(y), fitted(x)) == pytest.approx(expected, rel=1e-9)


def test_distance_agrees_with_the_square_root_of_published_evaluators():
    a, b = (fitted(features_of("gaussian", 500, seed)) for seed in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance_sqrtm(a, b), rel=1e-10)


def test_published_square_root_is_less_exact_for_singular_covariances():
    x, y = (features_of("low_rank", 250, seed) for seed in (1, 2))
    expected = distance_of_features(x, y)
    published = frechet_distance_sqrtm(fitted(x), fitted(y))
    assert published == pytest.approx(expected, rel=1e-4)
    ours = frechet_distance(fitted(x), fitted(y))
    assert abs(ours - expected) < 1e-3 * abs(published - expected)


def test_features_of_different_width_are_refused():
    a, b = gaussian([0, 0], torch.eye(2)), gaussian([0], torch.eye(1))
    for distance in (frechet_distance, frechet_distance_sqrtm):
        with pytest.raises(ValueError, match="differ in width: 2 and 1"):
            distance(a, b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(bad):
    good = gaussian([0, 0], torch.eye(2))
    for broken in (gaussian([0, bad], torch.eye(2)), gaussian([0, 0], torch.eye(2) * bad)):
        for distance in (frechet_distance, frechet_distance_sqrtm):
            with pytest.raises(ValueError, match="NaN or infinite"):
                distance(good, broken)


def test_a_matrix_of_negative_variance_is_refused():
    with pytest.raises(ValueError, match="negative variance, -1"):
        frechet_distance(gaussian([0, 0], torch.eye(2)), gaussian([0, 0], -torch.eye(2)))
