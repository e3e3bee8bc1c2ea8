import numpy as np
import pytest
import torch

from selfdistill.metrics.metric import Need
from selfdistill.metrics.statistics import RunningStatistics, Statistics

NEEDS = (
    Need("inception_2015", "pool_3", "moments"),
    Need("inception_2015", "pool_3", "features"),
    Need("inception_2015", "logits", "scores"),
    Need("tiny", "filters", "moments"),
)
NUM = 90


@pytest.fixture(scope="module")
def outputs():
    generator = torch.Generator().manual_seed(0)
    sizes = {"pool_3": 16, "logits": 10, "filters": 8}
    return {tap: torch.randn(NUM, size, generator=generator) for tap, size in sizes.items()}


def collected(outputs, pieces):
    running = RunningStatistics(NEEDS)
    for start, stop in pieces:
        piece = RunningStatistics(NEEDS)
        taps = {tap: values[start:stop] for tap, values in outputs.items()}
        piece.update("inception_2015", taps, start)
        piece.update("tiny", taps, start)
        running.merge(RunningStatistics.from_state(piece.state()))
    return running.finish()


def test_pieces_that_went_through_files_give_what_one_pass_gives(outputs):
    whole = collected(outputs, [(0, NUM)])
    parts = collected(outputs, [(0, 7), (7, 50), (50, NUM)])
    for need, moments in whole.moments.items():
        torch.testing.assert_close(parts.moments[need].mu, moments.mu, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(parts.moments[need].sigma, moments.sigma, rtol=0, atol=1e-14)
        assert parts.moments[need].num == NUM
    (score,), (other) = whole.scores.values(), parts.scores.values()
    assert list(other) == pytest.approx([score], rel=1e-13)
    assert torch.equal(parts.features[NEEDS[1]], outputs["pool_3"])


def test_finished_statistics_survive_an_npz(outputs, tmp_path):
    made = collected(outputs, [(0, NUM)])
    np.savez(tmp_path / "s.npz", **made.arrays(), fingerprint=np.array("ab"))
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        read = Statistics.from_arrays(dict(arrays))
    assert set(read.moments) == {NEEDS[0], NEEDS[3]}
    assert all(need in read for need in NEEDS)
    assert read.scores == made.scores
    for need in read.moments:
        assert torch.equal(read.moments[need].sigma, made.moments[need].sigma)
        assert read.moments[need].num == NUM
    assert torch.equal(read.features[NEEDS[1]], made.features[NEEDS[1]])


def test_the_later_statistics_are_believed(outputs):
    first = collected(outputs, [(0, 50)])
    second = collected(outputs, [(50, NUM)])
    both = first | second
    assert both.moments[NEEDS[0]] is second.moments[NEEDS[0]]
    assert (first | Statistics()).moments == first.moments


def test_only_what_is_needed_is_kept(outputs):
    running = RunningStatistics(NEEDS[:1])
    running.update("inception_2015", outputs, 0)
    made = running.finish()
    assert (set(made.moments), made.scores, made.features) == ({NEEDS[0]}, {}, {})
