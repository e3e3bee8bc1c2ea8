"""Statistics of images are the same however many processes made them, and survive a kill."""

import json

import numpy as np
import pytest

from selfdistill.distributed_config import DistributedConfig
from selfdistill.metrics.config import EvaluationConfig
from selfdistill.metrics.metric import Need
from selfdistill.pipelines.evaluate import collect as module
from selfdistill.pipelines.evaluate.collect import Collector

NEEDS = [Need("tiny", "filters", "moments"), Need("tiny", "filters", "features")]
CONFIG = EvaluationConfig(metrics=("fd_tiny",), batch_size=2)


@pytest.fixture
def collected(images, tmp_path):
    def collected(num_ranks=1, chosen=range(40), folder="scratch"):
        machine = DistributedConfig(device="cpu", num_ranks=num_ranks)
        collector = Collector(CONFIG, {}, machine, tmp_path / folder)
        return collector.collect(images, chosen, NEEDS).arrays()

    return collected


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("num_ranks", [2, 5])
def test_any_number_of_processes_gives_the_same_bits(collected, num_ranks):
    assert equal(collected(), collected(num_ranks, folder="other"))


def test_features_are_in_the_order_that_was_chosen(collected):
    order = [7, 3, 39, 0, 3]
    features = collected()["tiny/filters/features/vectors"]
    chosen = collected(chosen=order)["tiny/filters/features/vectors"]
    np.testing.assert_allclose(chosen, features[order], rtol=1e-6)


def test_a_killed_run_goes_on_with_the_missing_pieces(collected, monkeypatch):
    unbroken = collected(folder="unbroken")
    made, save = [], module.write_arrays

    def killed(file, arrays):
        if len(made) == 2:  # what was chosen, and a piece
            raise KeyboardInterrupt
        made.append(file)
        save(file, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            collected()
    asked = []
    run_job = module.run_job
    monkeypatch.setattr(
        module, "run_job", lambda *args: (asked.append(args[2]["pieces"]), run_job(*args))
    )
    assert equal(collected(), unbroken)
    assert json.loads(json.dumps(asked)) == [[[1, 16, 32], [2, 32, 40]]]


def test_finished_statistics_are_not_made_again_until_they_are_forgotten(
    images, monkeypatch, tmp_path
):
    machine = DistributedConfig(device="cpu", num_ranks=1)
    collector = Collector(CONFIG, {}, machine, tmp_path)
    first = collector.collect(images, range(40), NEEDS).arrays()
    monkeypatch.setattr(module, "run_job", None)
    assert equal(collector.collect(images, range(40), NEEDS).arrays(), first)
    collector.forget()
    with pytest.raises(TypeError):
        collector.collect(images, range(40), NEEDS)
