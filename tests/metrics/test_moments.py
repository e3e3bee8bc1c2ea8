import numpy as np
import pytest
import torch

from selfdistill.metrics.frechet import frechet_distance
from selfdistill.metrics.moments import Moments, RunningMoments


def random_features(num: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return rectified features, float32, some of which are dead."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9))
    features = torch.randn(num, width, generator=generator) @ mixing
    return (features - torch.linspace(-10, 80, width)).relu()


def moments_of(*parts: torch.Tensor, batch_size: int = 64) -> Moments:
    """Return the moments of parts that are taken apart from each other, then merged."""
    merged = RunningMoments()
    for part in parts:
        running = RunningMoments()
        for batch in part.split(batch_size):
            running.update(batch)
        merged.merge(running)
    return merged.finish()


def assert_moments(moments: Moments, features: torch.Tensor, tolerance: float = 1e-12) -> None:
    exact = features.double().numpy()
    sigma = np.cov(exact, rowvar=False)
    assert moments.num == len(features)
    assert moments.mu.dtype == moments.sigma.dtype == torch.float64
    np.testing.assert_allclose(moments.mu, exact.mean(0), rtol=tolerance)
    assert np.abs(moments.sigma.numpy() - sigma).max() <= tolerance * np.abs(sigma).max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("num", [2, 1000, 1024, 1025, 5000])
def test_batches_give_the_moments_of_one_pass_in_float64(num, dtype):
    features = random_features(num, 24).to(dtype)
    assert_moments(moments_of(features, batch_size=61), features)


def test_a_batch_larger_than_a_block_gives_the_same():
    features = random_features(5000, 24)
    assert_moments(moments_of(features, batch_size=5000), features)


def test_features_far_from_zero_lose_no_digits():
    features = torch.randn(5000, 3, generator=torch.Generator().manual_seed(4)) + 10_000
    assert_moments(moments_of(features, batch_size=7), features)


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_any_split_and_order_gives_the_same_frechet_distance(num_parts):
    features, others = random_features(2500, 256), random_features(2500, 256, seed=1)
    reference = moments_of(others)
    expected = frechet_distance(moments_of(features), reference)
    order = torch.randperm(2500, generator=torch.Generator().manual_seed(num_parts))
    parts = features[order].tensor_split(num_parts)
    distance = frechet_distance(moments_of(*reversed(parts), batch_size=50), reference)
    assert distance == pytest.approx(expected, rel=1e-11)


def test_merging_nothing_or_into_nothing_changes_nothing():
    features = random_features(30, 4)
    running, nothing = RunningMoments(), RunningMoments()
    running.update(features)
    running.update(features[:0])
    running.merge(nothing)
    nothing.merge(running)
    for merged in (running, nothing):
        assert_moments(merged.finish(), features)


def test_what_was_merged_is_left_as_it_was():
    part, whole = RunningMoments(), RunningMoments()
    part.update(random_features(30, 4))
    whole.merge(part)
    whole.update(random_features(2000, 4, seed=1))
    whole.finish()
    assert_moments(part.finish(), random_features(30, 4))


def test_moments_can_be_finished_on_the_way():
    features = random_features(3000, 4)
    running = RunningMoments()
    running.update(features[:1500])
    halfway = running.finish()
    running.update(features[1500:])
    assert_moments(halfway, features[:1500])
    assert_moments(running.finish(), features)


@pytest.mark.parametrize("num", [0, 1, 30, 1024, 2000])
def test_a_state_is_restored_exactly(num):
    running = RunningMoments()
    running.update(random_features(num, 4))
    state = running.state()
    assert int(state["num"]) == num
    restored = RunningMoments.from_state(state)
    for name, array in restored.state().items():
        np.testing.assert_array_equal(array, state[name], strict=True)
    for either in (running, restored):
        either.update(random_features(1500, 4, seed=1))
    for name in ("mu", "sigma"):
        assert torch.equal(getattr(running.finish(), name), getattr(restored.finish(), name))


def test_a_state_is_a_copy():
    running = RunningMoments()
    running.update(random_features(2000, 4))
    state = running.state()
    before = {name: array.copy() for name, array in state.items()}
    for either in (running, RunningMoments.from_state(state)):
        either.update(random_features(2000, 4, seed=1))
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)


def test_memory_does_not_grow_with_the_number_of_features():
    running = RunningMoments()
    sizes = []
    for _ in range(100):
        running.update(torch.ones(100, 4))
        tensors = [value for value in vars(running).values() if isinstance(value, torch.Tensor)]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert max(sizes) == sizes[0] < 1100 * 4 * 8


def test_a_covariance_of_one_image_is_refused():
    running = RunningMoments()
    running.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="two feature vectors or more, got 1"):
        running.finish()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    running = RunningMoments()
    running.update(torch.tensor([[1.0], [bad]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        running.finish()


def test_features_of_another_shape_are_refused():
    running, other = RunningMoments(), RunningMoments()
    running.update(torch.ones(5, 3))
    other.update(torch.ones(5, 4))
    with pytest.raises(ValueError, match="differ in width: 3 and 4"):
        running.update(torch.ones(5, 4))
    with pytest.raises(ValueError, match="differ in width: 3 and 4"):
        running.merge(other)
    with pytest.raises(ValueError, match=r"must be \(N, D\), got \[5\]"):
        running.update(torch.ones(5))


@pytest.mark.gpu
def test_features_stay_on_their_device_until_the_end():
    features = random_features(2500, 64)
    running, half = RunningMoments(), RunningMoments()
    for batch in features[:2000].cuda().split(64):
        running.update(batch)
    half.update(features[2000:])
    running.merge(half)
    assert running.state()["mu"].shape == (64,)
    assert all(value.is_cuda for value in vars(running).values() if isinstance(value, torch.Tensor))
    assert running.finish().mu.device.type == "cpu"
    assert_moments(running.finish(), features)
