import numpy as np
import pytest
import torch

from selfdistill.metrics.moments import RunningMoments


def test_batches_and_merges_give_the_moments_of_one_pass():
    features = torch.randn(101, 6, generator=torch.Generator().manual_seed(3)).double() + 50
    parts = [RunningMoments(), RunningMoments(), RunningMoments()]
    for part, chunk in zip(parts[:2], features.split(60), strict=True):
        part.update(chunk)
        part.update(chunk[:0])
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    merged = parts[0].finish()
    assert merged.num == 101
    np.testing.assert_allclose(merged.mu, features.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.sigma, np.cov(features.numpy(), rowvar=False), rtol=1e-11)


def test_float32_features_far_from_zero_lose_no_digits():
    features = torch.randn(5000, 3, generator=torch.Generator().manual_seed(4)) + 10_000
    exact = np.cov(features.double().numpy(), rowvar=False)
    running = RunningMoments()
    for batch in features.split(7):
        running.update(batch)
    np.testing.assert_allclose(running.finish().sigma, exact, rtol=1e-9)


def test_a_covariance_of_one_image_is_refused():
    running = RunningMoments()
    running.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="two feature vectors or more, got 1"):
        running.finish()


def test_features_that_are_not_finite_are_refused():
    running = RunningMoments()
    running.update(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        running.finish()
