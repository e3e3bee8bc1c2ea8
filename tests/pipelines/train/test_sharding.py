"""A method whose networks take turns, on ranks that hold rows of them."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

# Two networks with layers, each frozen while the other learns, an averaged copy of the one, and a
# small frozen one without layers. The fake network sees the generator's output, as in SiDA.
_RANK = """
    import copy, json, os, sys
    from pathlib import Path
    import torch
    from torch import nn
    from selfdistill.data.loader import Loader
    from selfdistill.data.shards import Shards
    from selfdistill.distributed import Job, joined, local
    from selfdistill.methods.ema import update_average
    from selfdistill.methods.method import Method
    from selfdistill.pipelines.train.config import TrainConfig
    from selfdistill.pipelines.train.loop import fit

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.start = nn.Linear(12, 10)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(10, 10), nn.Tanh()) for _ in range(2)
            )
            self.end = nn.Linear(10, 3)
            self.idle = nn.Parameter(torch.ones(5), requires_grad=False)

        def layers(self):
            return list(self.blocks)

        def hidden_matrices(self):
            return [block[0].weight for block in self.blocks]

        def predict(self, x):
            h = self.start(x)
            for block in [*self.blocks, *self.blocks]:  # each layer twice
                h = block(h)
            return self.end(h)

    class Both(Method):
        def __init__(self):
            super().__init__()
            self.generator, self.fake = Network(), Network()
            self.average = copy.deepcopy(self.generator).requires_grad_(False)
            self.judge = nn.Linear(3, 3).requires_grad_(False)

        def turns(self):
            return {"fake": self.fake_loss, "generator": self.generator_loss}

        def pixels(self, batch):
            return batch.images.flatten(2)[:, :, :12].mean(1) + 0.1 * batch.draws.normal("eps", 12)

        def fake_loss(self, batch):
            with torch.no_grad():
                target = self.judge(self.average.predict(self.pixels(batch)))
            return {"fit": (self.fake.predict(self.pixels(batch)) - target).square().mean(1)}

        def generator_loss(self, batch):
            x = self.pixels(batch)
            y = self.generator.predict(x)
            return {"match": (self.judge(y) - self.fake.predict(x)).square().mean(1)}

        def after_step(self, nimg, batch_size):
            update_average(self.average, self.generator, 0.9)

        def noise_shape(self):
            return (12,)

        def data_shape(self):
            return (3, 4, 4)

        def released(self):
            return self.average

        def sample(self, eps, labels, solver, draws):
            return eps

    values = json.loads(sys.argv[1])
    config = TrainConfig.model_validate(values["train"])
    job = Job("", "", "cpu", values["strategy"])
    with joined(job, Path(values["store"])) as (_, world):
        torch.manual_seed(0)
        method = Both()
        images = Shards.open(Path(values["images"]))
        loader = Loader(
            images=images, features=None, seed=0, flip=True, device=world.device
        )
        directory = Path(values["directory"])
        fit(method, loader, config, world, directory)
        state = world.state_of(method)
        sizes = [local(p).numel() for p in method.judge.parameters()]
        assert sizes == [9, 3]
        if world.is_main:
            sums = {name: value.double().sum().item() for name, value in state.items()}
            lines = [json.loads(line) for line in (directory / "curves.jsonl").open()]
            print(json.dumps([sums, lines]))
"""


def trained(tmp_path, images, config, size, strategy):
    place = tmp_path / f"{strategy}_{size}"
    place.mkdir()
    values = {
        "train": config.model_dump(mode="json"), "strategy": strategy, "images": str(images.path),
        "directory": str(place), "store": str(tmp_path / f"{strategy}_{size}.store"),
    }  # fmt: skip
    command = [sys.executable, "-c", textwrap.dedent(_RANK), json.dumps(values)]
    ranks = [
        subprocess.Popen(
            command,
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    outputs = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    return json.loads(outputs[0].splitlines()[-1])


def test_networks_that_take_turns_train_on_rows_as_they_do_whole(images, train_config, tmp_path):
    """Gradients reach one of them at a time; layers are used twice; an average follows."""
    config = train_config.model_copy(update={"micro_batch_size": 2, "num_probe_images": 0})
    sums, lines = trained(tmp_path, images, config, 1, "ddp")
    assert lines[0]["fake/fit"] != lines[-1]["fake/fit"]
    others = trained(tmp_path, images, config, 2, "fsdp")
    assert others[0].keys() == sums.keys()
    assert others[0] == pytest.approx(sums, rel=1e-4, abs=1e-4)
    for line, expected in zip(others[1], lines, strict=True):
        for name in ("fake/fit", "generator/match"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5)
