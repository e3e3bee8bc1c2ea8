import numpy as np
import pytest
import torch

from selfdistill.metrics.inception_score import RunningInceptionScore


def random_logits(num: int, num_classes: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, num_classes, generator=generator) * 3


def printed_score(logits: torch.Tensor, split_size: int) -> float:
    """The formula as ADM's evaluator has it, on whole splits, in float64."""
    exact = logits.double().numpy()
    p = np.exp(exact - exact.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores = []
    for start in range(0, len(p), split_size):
        part = p[start : start + split_size]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    return float(np.mean(scores))


def running_score(logits: torch.Tensor, split_size: int, batch_size: int) -> RunningInceptionScore:
    running = RunningInceptionScore(split_size)
    for start in range(0, len(logits), batch_size):
        running.update(logits[start : start + batch_size], start)
    return running


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [1, 64, 100, 130, 1050])
@pytest.mark.parametrize("num", [1000, 1050, 99])
def test_score_equals_the_printed_formula_also_if_batches_straddle_splits(num, batch_size, dtype):
    logits = random_logits(num).to(dtype)
    score = running_score(logits, 100, batch_size).finish()
    assert score == pytest.approx(printed_score(logits, 100), rel=1e-12)


def test_splits_have_5000_images():
    logits = random_logits(7000, num_classes=4)
    running = RunningInceptionScore()
    running.update(logits, 0)
    assert running.finish() == pytest.approx(printed_score(logits, 5000), rel=1e-12)


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_any_split_into_processes_and_any_order_give_the_same(num_parts):
    logits = random_logits(1050)
    batches = list(range(0, 1050, 40))
    np.random.default_rng(num_parts).shuffle(batches)
    merged = RunningInceptionScore(100)
    for part in np.array_split(batches, num_parts):
        running = RunningInceptionScore(100)
        for start in part:
            running.update(logits[start : start + 40], int(start))
        merged.merge(RunningInceptionScore.from_state(running.state()))
    assert merged.finish() == pytest.approx(printed_score(logits, 100), rel=1e-12)


def test_what_was_merged_is_left_as_it_was():
    logits = random_logits(100)
    first, second, merged = (RunningInceptionScore(100) for _ in range(3))
    first.update(logits[:60], 0)
    second.update(logits[60:], 60)
    merged.merge(first)
    before = first.finish()
    merged.merge(second)
    assert first.finish() == before != merged.finish()


@pytest.mark.parametrize("num", [0, 1, 250])
def test_a_state_is_restored_exactly(num):
    running = running_score(random_logits(num), 100, 64)
    state = running.state()
    restored = RunningInceptionScore.from_state(state)
    for name, array in restored.state().items():
        np.testing.assert_array_equal(array, state[name])
    for either in (running, restored):
        either.update(random_logits(30, seed=1), num)
    assert running.finish() == restored.finish()


def test_certain_images_of_all_classes_score_the_number_of_classes_though_p_underflows():
    logits = torch.full((50, 10), -1e4)
    logits[torch.arange(50), torch.arange(50) % 10] = 1e4
    assert running_score(logits, 50, 7).finish() == pytest.approx(10, rel=1e-14)


def test_certain_images_of_one_class_score_1_though_p_underflows():
    logits = torch.full((50, 10), -1e4)
    logits[:, 3] = 1e4
    assert running_score(logits, 50, 7).finish() == 1


def test_images_that_are_all_alike_score_1():
    logits = random_logits(1).expand(30, -1)
    assert running_score(logits, 10, 7).finish() == pytest.approx(1, rel=1e-14)


def test_one_image_scores_1_and_so_does_one_class():
    assert running_score(random_logits(1), 10, 7).finish() == pytest.approx(1, rel=1e-14)
    assert running_score(random_logits(30, num_classes=1), 10, 7).finish() == 1


def test_memory_grows_with_the_splits_only():
    running = running_score(random_logits(1050), 100, 10)
    assert {name: array.shape for name, array in running.state().items()} == {
        "split_size": (),
        "index": (11,),
        "num": (11,),
        "p": (11, 20),
        "p_log_p": (11,),
    }


def test_a_missing_batch_is_noticed():
    running = RunningInceptionScore(100)
    running.update(random_logits(90), 0)
    running.update(random_logits(50), 100)
    with pytest.raises(ValueError, match="split 0 of 2 has 90 images instead of 100"):
        running.finish()


def test_a_batch_that_comes_twice_is_noticed():
    running = RunningInceptionScore(100)
    running.update(random_logits(60), 0)
    running.update(random_logits(60), 0)
    with pytest.raises(ValueError, match="split 0 of 1 has 120 images instead of 100"):
        running.finish()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = random_logits(20)
    logits[3, 4] = bad
    with pytest.raises(ValueError, match="logits of 20 images hold NaN or infinite"):
        running_score(logits, 10, 7).finish()


def test_a_score_of_no_images_is_refused():
    running = RunningInceptionScore()
    running.update(random_logits(0), 0)
    with pytest.raises(ValueError, match="needs one image or more"):
        running.finish()


def test_logits_of_another_shape_are_refused():
    running, other = RunningInceptionScore(100), RunningInceptionScore(50)
    running.update(random_logits(5), 0)
    with pytest.raises(ValueError, match="of 20 and of 7 classes"):
        running.update(random_logits(5, num_classes=7), 5)
    for logits, start in ((torch.zeros(3), 0), (torch.zeros(3, 0), 0), (torch.zeros(3, 2), -1)):
        with pytest.raises(ValueError, match=r"must be \(N, K\)"):
            running.update(logits, start)
    with pytest.raises(ValueError, match="splits of 100 and of 50 images"):
        running.merge(other)
    with pytest.raises(ValueError, match="one image or more, got split_size = 0"):
        RunningInceptionScore(0)
