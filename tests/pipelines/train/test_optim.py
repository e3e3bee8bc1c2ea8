import math

import pytest
import torch
from torch.optim import AdamW

from selfdistill.methods.registry import build_method
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.muon import BatchedMuon
from selfdistill.pipelines.train.optim import build_optimizers, learning_rate


def test_the_rate_rises_linearly_then_falls_by_half_a_cosine(train_config):
    peak = train_config.optimizer.lr
    rates = [learning_rate(train_config, nimg) for nimg in range(0, 96, 8)]
    assert rates[:3] == pytest.approx([peak / 3, peak * 2 / 3, peak])
    middle = learning_rate(train_config, 16 + 40)
    assert middle == pytest.approx(peak * (1 + math.cos(math.pi / 2)) / 2)
    assert learning_rate(train_config, 96) == pytest.approx(0)


def test_a_constant_rate_stays(train_config):
    constant = train_config.model_copy(update={"schedule": "constant", "warmup_nimg": 0})
    rates = [learning_rate(constant, nimg) for nimg in (0, 50, 10_000)]
    assert rates == [constant.optimizer.lr] * 3


def test_every_parameter_has_one_optimizer_and_only_matrices_decay(network, method, train_config):
    vit = build_method(network, method).network
    muon, adamw = build_optimizers(vit, train_config.optimizer)
    assert isinstance(muon, BatchedMuon)
    assert isinstance(adamw, AdamW)
    owned = [p for optimizer in (muon, adamw) for g in optimizer.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(vit.parameters()))
    assert muon.param_groups[0]["weight_decay"] == 0.1
    assert adamw.param_groups[0]["weight_decay"] == 0
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert torch.is_tensor(owned[0])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"log_nimg": 12}, "log_nimg 12"),
        ({"checkpoint_nimg": 24}, "checkpoint_nimg 24"),
        ({"lr": 1e-3}, "lr"),
        ({"schedule": "linear"}, "schedule"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_values_are_named(train_config, changes, word):
    with pytest.raises(ValueError, match=word):
        TrainConfig.model_validate(train_config.model_dump() | changes)
