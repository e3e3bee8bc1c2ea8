import math

import pytest
import torch

from selfdistill.metrics import rank
from selfdistill.metrics.rank import collapse_warning, effective_rank, rank_diagnostics


def gaussian(num: int, width: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=torch.float64)


def orthonormal(num: int, width: int, *, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(gaussian(num, width, seed=seed))[0]


def with_singular_values(values: list[float], num: int = 200) -> torch.Tensor:
    sigma = torch.tensor(values, dtype=torch.float64)
    return orthonormal(num, len(values)) * sigma @ orthonormal(len(values), len(values), seed=1).T


def printed(Z: torch.Tensor) -> float:
    """Eq. 3 as printed."""
    sigma = torch.linalg.svdvals(Z.double())
    p = sigma / sigma.sum()
    return math.exp(-sum(one * math.log(one) for one in p.tolist() if one > 0))


def record(nimg: int, margin: float) -> dict[str, object]:
    ranks = {"rank_target": 5.0 + margin, "rank_projection": 5.0, "rank_margin": margin}
    return {"nimg": nimg, "loss": 1.0, "diagnostics": ranks}


def warned_at(margins: list[float], patience: int) -> list[int]:
    """Return after which records of a growing log there is a warning."""
    records = [record(nimg, margin) for nimg, margin in enumerate(margins)]
    ends = range(1, len(records) + 1)
    return [end - 1 for end in ends if collapse_warning(records[:end], patience) is not None]


@pytest.mark.parametrize("width", [1, 2, 16, 64])
def test_orthonormal_directions_fill_all_dimensions(width):
    assert effective_rank(orthonormal(100, width), centred=False) == pytest.approx(width, rel=1e-12)


def test_vectors_on_one_line_have_rank_one():
    line = gaussian(500, 1) * gaussian(1, 16, seed=1)
    assert effective_rank(line, centred=False) == 1
    assert effective_rank(line, centred=True) == 1


def test_two_unequal_singular_values_have_their_closed_form():
    vectors = with_singular_values([3.0, 1.0])
    expected = 4 / 3**0.75  # exp of -(3/4 log 3/4 + 1/4 log 1/4)
    assert effective_rank(vectors, centred=False) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 7.0, 1e12])
@pytest.mark.parametrize("centred", [False, True])
def test_scale_changes_nothing(scale, centred):
    vectors = gaussian(300, 8) @ gaussian(8, 8, seed=1) + 1
    expected = effective_rank(vectors, centred=centred)
    assert effective_rank(scale * vectors, centred=centred) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "vectors",
    [
        gaussian(5000, 16),
        gaussian(5000, 16) + 30,
        with_singular_values([10.0**-k for k in range(6)]),
        with_singular_values([1.0] * 5 + [1e-5] * 5),
        gaussian(20, 50),
        gaussian(300, 16).float(),
        gaussian(300, 16).bfloat16(),
    ],
    ids=["white", "off_centre", "decaying", "two_levels", "few_vectors", "float32", "bfloat16"],
)
def test_rank_is_that_of_the_singular_values(vectors):
    mean = vectors.double().mean(0)
    for centred, Z in ((False, vectors), (True, vectors.double() - mean)):
        value = effective_rank(vectors, centred=centred)
        assert value == pytest.approx(printed(Z), rel=1e-9)
        assert 1 <= value <= min(vectors.shape)


def test_centring_takes_a_far_away_cloud_from_one_to_all_dimensions():
    cloud = gaussian(4096, 16) + 1e6
    assert effective_rank(cloud, centred=False) == pytest.approx(1, abs=1e-3)
    assert effective_rank(cloud, centred=True) == pytest.approx(16, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_single_point_has_rank_one_centred_or_not(dtype):
    point = gaussian(1, 16).to(dtype).expand(5000, 16)
    assert effective_rank(point, centred=False) == 1
    assert effective_rank(point, centred=True) == 1
    assert effective_rank(torch.zeros(10, 4), centred=False) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_vectors_that_are_not_finite_have_no_rank_and_no_diagnostics(bad):
    vectors = gaussian(10, 4)
    vectors[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        effective_rank(vectors, centred=False)
    assert rank_diagnostics(gaussian(10, 4), gaussian(10, 4), vectors) == {}


def test_what_is_not_a_list_of_vectors_is_refused():
    with pytest.raises(ValueError, match=r"must be \(N, D\), got \[2, 3, 4\]"):
        effective_rank(torch.zeros(2, 3, 4), centred=False)


def test_diagnostics_are_the_ranks_and_standard_deviations_of_the_three():
    target, online = gaussian(1000, 6), gaussian(1000, 6, seed=1) * torch.arange(6)
    projection = with_singular_values([1.0, 1, 1e-3, 0, 0, 0], num=1000) + 2
    got = rank_diagnostics(target, online, projection)
    for name, vectors in (("target", target), ("online", online), ("projection", projection)):
        assert got[f"rank_{name}"] == effective_rank(vectors, centred=False)
        assert got[f"rank_{name}_centred"] == effective_rank(vectors, centred=True)
    assert got["rank_margin"] == got["rank_target"] - got["rank_projection"] > 0
    assert got["channel_std_online"] == pytest.approx(online.std(0).tolist())
    assert got["std_online"] == pytest.approx(float(online.var(0).mean().sqrt()))
    assert got["std_target"] == pytest.approx(float(target.var(0).mean().sqrt()))
    assert sorted(got) == sorted(
        value
        for name, value in vars(rank).items()
        if (name.startswith("RANK_") or "STD_" in name) and name != "RANK_VELOCITY"
    )


def test_the_standard_deviation_sees_normalised_latents_in_one_point():
    point = torch.nn.functional.layer_norm(gaussian(1, 16), (16,)).expand(200, 16)
    got = rank_diagnostics(point, point, point)
    assert got["std_target"] < 1e-12
    assert got["rank_margin"] == 0


def test_diagnostics_take_no_part_in_a_gradient():
    latents = gaussian(100, 4).requires_grad_()
    got = rank_diagnostics(latents, latents, 2 * latents)
    assert all(type(one) is float for name, one in got.items() if name != "channel_std_online")
    assert all(type(one) is float for one in got["channel_std_online"])


@pytest.mark.parametrize(
    ("margins", "patience", "expected"),
    [
        ([-1, -1, -1, -1, -1], 3, [2]),
        ([1, -1, -1, -1, -1, -1], 3, [3]),
        ([-1, -1, 1, -1, -1, 0, -1, -1], 3, []),
        ([-1, -1, -1, 1, -1, -1, -1, -1], 3, [2, 6]),
        ([1, -1, -1, 1, -1], 1, [1, 4]),
        ([1, 1, 1], 1, []),
        ([], 2, []),
    ],
)
def test_a_collapse_is_warned_of_once_in_each_series(margins, patience, expected):
    assert warned_at(margins, patience) == expected


def test_the_warning_is_one_line_with_all_that_a_user_asks():
    records = [record(102_400, 2.0), record(204_800, -0.5), record(307_200, -3.75)]
    warning = collapse_warning(records, 2)
    assert warning is not None
    assert "\n" not in warning
    for part in ("307,200", "204,800", "1.25", "5", "normalised", "augmentation", "docs/dsd.md"):
        assert part in warning


def test_a_log_without_diagnostics_gives_no_warning():
    plain = {"nimg": 1, "loss": 1.0}
    assert collapse_warning([plain, plain, plain], 2) is None
    assert collapse_warning([record(1, -1), plain], 2) is None
    assert collapse_warning([plain, record(1, -1), record(2, -1)], 2) is not None
