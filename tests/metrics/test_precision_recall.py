import numpy as np
import pytest
import torch

from selfdistill.metrics.precision_recall import precision_recall


def random_features(num: int, seed: int, *, width: int = 64, shift: float = 0.0) -> torch.Tensor:
    """Return rectified features near a manifold of 12 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(9)
    mixing = torch.randn(12, width, generator=shared)
    bias = torch.randn(width, generator=shared)
    source = torch.randn(num, 12, generator=generator) + shift
    noise = torch.randn(num, width, generator=generator)
    return (source @ mixing + bias + 0.1 * noise).relu() * 0.3


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return random_features(1000, seed=0)


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return random_features(1000, seed=1, shift=0.35)


def printed_shares(cross: np.ndarray, own_u: np.ndarray, own_v: np.ndarray, k: int = 3):
    """Eq. 1 and 2 on whole matrices of distances: (M, N), (M, M) and (N, N)."""
    radii_u, radii_v = (np.sort(own, axis=1)[:, k] for own in (own_u, own_v))
    precision = (cross <= radii_u[:, None]).any(0).mean()
    recall = (cross <= radii_v[None, :]).any(1).mean()
    return precision, recall


def exact_distances(u: torch.Tensor, v: torch.Tensor) -> np.ndarray:
    """Squared distances in float64, without a product."""
    u, v = u.double().numpy(), v.double().numpy()
    return np.stack([np.square(row - v).sum(1) for row in u])


def half_distances(u: torch.Tensor, v: torch.Tensor) -> np.ndarray:
    """ADM's distances: NumPy rounds each operation on halves to a half."""
    u, v = u.numpy().astype(np.float16), v.numpy().astype(np.float16)
    product = (u.astype(np.float64) @ v.astype(np.float64).T).astype(np.float16)
    norms = [np.square(x).astype(np.float64).sum(1).astype(np.float16) for x in (u, v)]
    return np.maximum(norms[0][:, None] - np.float16(2) * product + norms[1], np.float16(0))


def shares(distances, u: torch.Tensor, v: torch.Tensor, k: int = 3) -> tuple[float, float]:
    return printed_shares(distances(u, v), distances(u, u), distances(v, v), k)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_float32_equals_the_printed_formula_in_float64(reference, samples, k):
    ours = precision_recall(reference, samples, arithmetic="float32", k=k)
    assert ours == shares(exact_distances, reference, samples, k)
    assert all(0.1 < share < 0.95 for share in ours)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_float16_equals_the_printed_formula_in_halves(reference, samples, k):
    ours = precision_recall(reference, samples, arithmetic="float16", k=k)
    assert ours == shares(half_distances, reference, samples, k)


def test_float16_raises_both_shares_a_little_where_norms_are_as_large_as_inceptions(
    reference, samples
):
    u, v = reference + 2, samples + 2
    assert 300 < u.square().sum(1).mean() < 600
    half = precision_recall(u, v, arithmetic="float16")
    single = precision_recall(u, v, arithmetic="float32")
    for higher, lower in zip(half, single, strict=True):
        assert lower < higher < lower + 0.03


@pytest.mark.parametrize("arithmetic", ["float16", "float32"])
@pytest.mark.parametrize("block", [4, 300, 999, 1000])
def test_blocks_change_nothing(reference, samples, arithmetic, block):
    u, v = (reference[:101], samples[:90]) if block == 4 else (reference, samples[:700])
    whole = precision_recall(u, v, arithmetic=arithmetic)
    assert precision_recall(u, v, arithmetic=arithmetic, block=block) == whole


def test_halves_that_overflow_are_taken_in_float32(reference, samples):
    u, v = reference * 200, samples * 200
    assert u.square().sum(1).max() > 65504
    half = precision_recall(u, v, arithmetic="float16")
    assert half == precision_recall(u, v, arithmetic="float32")


def test_features_that_are_no_halves_are_taken_in_float32(reference, samples):
    u, v = reference * 1e6, samples * 1e6
    half = precision_recall(u, v, arithmetic="float16")
    assert half == precision_recall(reference, samples, arithmetic="float32")


def test_only_the_blocks_that_overflow_are_taken_in_float32(reference, samples):
    """One huge real image is in every block of its row and column, and in no other."""
    u, v = reference.clone(), samples
    u[-1] *= 1000
    block = 500
    mixed = precision_recall(u, v, arithmetic="float16", block=block)

    def distances(u: torch.Tensor, v: torch.Tensor) -> np.ndarray:
        blocks = [[half_distances(a, b) for b in v.split(block)] for a in u.split(block)]
        for i, a in enumerate(u.split(block)):
            for j, b in enumerate(v.split(block)):
                if not np.isfinite(blocks[i][j]).all():
                    blocks[i][j] = exact_distances(a, b)
        return np.block(blocks)

    with np.errstate(over="ignore", invalid="ignore"):
        assert mixed == shares(distances, u, v)
    assert mixed != precision_recall(u, v, arithmetic="float32")


@pytest.mark.parametrize("arithmetic", ["float16", "float32"])
class TestBothArithmetics:
    def test_a_set_covers_itself(self, reference, arithmetic):
        assert precision_recall(reference, reference.clone(), arithmetic=arithmetic) == (1, 1)

    def test_sets_far_apart_cover_nothing_of_each_other(self, reference, arithmetic):
        away = reference + 20
        assert precision_recall(reference, away, arithmetic=arithmetic) == (0, 0)

    def test_a_part_of_the_real_images_is_precise_and_recalls_little(self, reference, arithmetic):
        mode = reference[reference[:, 0].argsort()[-300:]]
        precision, recall = precision_recall(reference, mode, arithmetic=arithmetic)
        assert precision == 1
        assert recall < 0.9

    def test_the_roles_are_exchangeable(self, reference, samples, arithmetic):
        precision, recall = precision_recall(reference, samples, arithmetic=arithmetic)
        exchanged = precision_recall(samples, reference, arithmetic=arithmetic)
        assert exchanged == pytest.approx((recall, precision), abs=0.003)  # halves: |u|² is first

    def test_order_changes_nothing(self, reference, samples, arithmetic):
        order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
        shuffled = precision_recall(reference[order], samples[order.flip(0)], arithmetic=arithmetic)
        assert shuffled == precision_recall(reference, samples, arithmetic=arithmetic)

    def test_k_plus_1_vectors_suffice_and_k_do_not(self, reference, arithmetic):
        few = reference[:4]
        assert precision_recall(few, few, arithmetic=arithmetic, k=3) == (1, 1)
        with pytest.raises(ValueError, match="k = 3 needs 4 samples or more, got 3"):
            precision_recall(few, few[:3], arithmetic=arithmetic)
        with pytest.raises(ValueError, match="k = 3 needs 4 real images or more, got 3"):
            precision_recall(few[:3], few, arithmetic=arithmetic)

    def test_features_of_different_width_are_refused(self, reference, arithmetic):
        with pytest.raises(ValueError, match=r"got \[1000, 64\] and \[1000, 63\]"):
            precision_recall(reference, reference[:, 1:], arithmetic=arithmetic)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_features_that_are_not_finite_are_refused(self, reference, arithmetic, bad):
        broken = reference.clone()
        broken[5, 6] = bad
        with pytest.raises(ValueError, match="of the samples hold NaN or infinite"):
            precision_recall(reference, broken, arithmetic=arithmetic)
        with pytest.raises(ValueError, match="of the real images hold NaN or infinite"):
            precision_recall(broken, reference, arithmetic=arithmetic)


def test_a_lower_precision_of_products_is_switched_off_and_on_again(reference, samples):
    expected = precision_recall(reference, samples, arithmetic="float32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert precision_recall(reference, samples, arithmetic="float32") == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.parametrize("arithmetic", ["float16", "float32"])
def test_a_gpu_agrees_with_the_cpu(reference, samples, arithmetic):
    expected = precision_recall(reference, samples, arithmetic=arithmetic)
    on_gpu = precision_recall(reference, samples.cuda(), arithmetic=arithmetic)
    assert on_gpu == pytest.approx(expected, abs=0.002)
