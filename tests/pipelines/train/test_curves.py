"""What a line of the curves says, and when it must not be written."""

import json

import pytest
import torch

from selfdistill.distributed import World
from selfdistill.pipelines.train.curves import Curves, Means

HERE = World(0, 1, torch.device("cpu"))


def means_of(terms, norms):
    means = Means()
    for name, values in terms.items():
        means.add(name, torch.tensor(values))
    for norm in norms:
        means.add("grad_norm", torch.tensor(norm))
    return means


def test_a_line_has_the_means_of_what_is_finite(tmp_path):
    curves = Curves(tmp_path, 0, HERE)
    nan = float("nan")
    means = means_of({"a/x": [1.0, 3.0], "a/y": [2.0, nan]}, [1.0, 2.0, 6.0, nan])
    assert curves.write(8, means, 0.1, {}) == pytest.approx(4.0)
    line = json.loads((tmp_path / "curves.jsonl").read_text())
    assert line == {
        "nimg": 8, "loss": 4.0, "a/x": 2.0, "a/y": 2.0, "lr": 0.1, "grad_norm": 3.0,
        "skipped_steps": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "norms", "text"),
    [
        ({"a/x": [float("inf")] * 2}, [1.0, 1.0], "a/x is not finite for 2 of 2 images: 0 of 2"),
        ({"a/x": [1.0, 1.0]}, [float("nan"), 1.0, float("inf")], "though all loss terms are: 2"),
        ({"a/x": [1.0, 1.0]}, [float("nan")], "1 of 1 steps were skipped up to 8 images"),
    ],
)
def test_most_steps_skipped_or_a_term_never_finite_ends_a_training(tmp_path, terms, norms, text):
    with pytest.raises(FloatingPointError, match=text):
        Curves(tmp_path, 0, HERE).write(8, means_of(terms, norms), 0.1, {})
    assert not (tmp_path / "curves.jsonl").exists()


def test_gradients_of_turns_stand_apart_and_mended_ones_are_counted(tmp_path):
    means = means_of({"a/x": [1.0], "b/y": [2.0]}, [1.0, 3.0, 1.0, 5.0])
    means.add("grad_norm_a", torch.tensor([1.0, 1.0]))
    means.add("grad_norm_b", torch.tensor([3.0, 5.0]))
    means.add("mended_a", torch.tensor([0.0, 0.25]))
    means.add("mended_b", torch.tensor([0.0, 0.0]))
    assert Curves(tmp_path, 0, HERE).write(8, means, 0.1, {}) == pytest.approx(3.0)
    line = json.loads((tmp_path / "curves.jsonl").read_text())
    assert line == {
        "nimg": 8, "loss": 3.0, "a/x": 1.0, "b/y": 2.0, "lr": 0.1, "grad_norm": 2.5,
        "grad_norm_a": 1.0, "grad_norm_b": 4.0, "skipped_steps": 0, "mended_a": 0.125,
        "mended_b": 0.0,
    }  # fmt: skip
    means.add("mended_a", torch.ones(2))
    with pytest.raises(FloatingPointError, match=r"0\.56 of a's gradients was not finite up to 16"):
        Curves(tmp_path, 0, HERE).write(16, means, 0.1, {})


def test_ranks_that_were_resumed_add_up_to_the_same_bits():
    """The saved total, shared out evenly, and what came after, in any number of ranks."""
    values = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).exp()

    def total(parts):
        together = Means()
        for part in parts:
            together.add("x", part)
        return together.totals["x"]

    uninterrupted = total(values[:2]) + total(values[2:])
    saved = total(values[0:1]) + total(values[2:3])
    for num_ranks in (1, 2, 3, 8):
        ranks = [Means({"x": saved / num_ranks}) for _ in range(num_ranks)]
        ranks[0].add("x", values[1])
        ranks[-1].add("x", values[3])
        resumed = sum(rank.totals["x"] for rank in ranks)
        assert float(resumed[0] / resumed[1]) == pytest.approx(
            float(uninterrupted[0] / uninterrupted[1]), rel=1e-14
        )
        if num_ranks in (1, 2, 8):  # dividing by a power of two is exact
            assert torch.equal(resumed, uninterrupted)
