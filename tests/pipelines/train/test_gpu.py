"""What only a CUDA device can show."""

import json
import os
import signal

import pytest
import torch

from selfdistill.data.loader import Batch
from selfdistill.distributed import Job, joined
from selfdistill.distributed_config import DistributedConfig
from selfdistill.draws import Draws
from selfdistill.files import write_json
from selfdistill.methods.dsd import DSD
from selfdistill.methods.registry import build_method
from selfdistill.pipelines.train.curves import Means
from selfdistill.pipelines.train.job import train_row
from selfdistill.pipelines.train.optim import apply_gradients, build_optimizers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def in_process(monkeypatch):
    """Train on the GPU in this process, where a test can stop it."""
    one_rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in one_rank.items():
        monkeypatch.setenv(name, value)
    with joined(Job("", "", "cuda")) as (_, world):

        def run_here(run, directory, spec, _):
            file = directory.with_suffix(".json")
            write_json(file, {"directory": str(directory), **spec})
            run(file, world)

        monkeypatch.setattr("selfdistill.pipelines.train.job.run_job", run_here)
        yield


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_bf16_trainings_give_the_same_bytes_stopped_or_not(
    images, features, network, method, train_config, tmp_path, monkeypatch, in_process, compiled,
    recomputed,
):  # fmt: skip
    """The probe is of another size than the batches, and must not matter to them."""
    changes = {
        "precision": "bf16", "compile": compiled, "recompute_activations": recomputed,
        "num_probe_images": 6,
    }  # fmt: skip
    config = train_config.model_copy(update=changes)
    machine = DistributedConfig(device="cuda", num_ranks=1)

    def train(name):
        torch.compiler.reset()
        return train_row(images, features, network, method, config, machine, tmp_path / name, {})

    one, two = train("one"), train("two")
    after_step = DSD.after_step

    def stop(self, nimg, batch_size):
        after_step(self, nimg, batch_size)
        if nimg == 40:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DSD, "after_step", stop)
        with pytest.raises(SystemExit):
            train("stopped")
    resumed = train("stopped")
    for file in ("weights.safetensors", "curves.jsonl"):
        for other in (two, resumed):
            assert (one.path / file).read_bytes() == (other.path / file).read_bytes()


def test_bf16_follows_the_cpus_float32(
    images, features, network, method, train_config, one_rank, tmp_path
):
    gpu = DistributedConfig(device="cuda", num_ranks=1)
    config = train_config.model_copy(update={"precision": "bf16"})
    curves = [
        [json.loads(line)["loss"] for line in c.curves.read_text().splitlines()]
        for c in (
            train_row(
                images, features, network, method, config, machine, tmp_path / str(number), {}
            )
            for number, machine in enumerate((one_rank, gpu))
        )
    ]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


def test_latents_pixels_and_logits_keep_float32_under_autocast(network, method):
    vit = build_method(network, method).network.cuda()
    x = torch.randn(2, 3, 16, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        z = vit.encode(x)
        h, _ = vit.denoise(z)
        t, labels = torch.rand(2, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
        outputs = (z, vit.predict_z0(h, t, labels), vit.predict_velocity(h, t, labels))
        assert all(y.dtype == torch.float32 for y in (*outputs, vit.decode(h), vit.classify(z)))


def test_compiled_layers_train_as_eager_ones_do(
    images, features, network, method, train_config, tmp_path
):
    gpu = DistributedConfig(device="cuda", num_ranks=1)
    losses = []
    for compiled in (False, True):
        config = train_config.model_copy(update={"compile": compiled})
        scratch = tmp_path / str(compiled)
        checkpoint = train_row(images, features, network, method, config, gpu, scratch, {})
        lines = checkpoint.curves.read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_no_part_of_a_step_makes_the_host_wait(network, method, train_config):
    """CUDA's own debug mode raises where something asks the device for a value."""
    built = build_method(network, method, {}).cuda()
    optimizers = build_optimizers(built.network, train_config.optimizer)
    trained = [p for p in built.network.parameters() if p.requires_grad]
    means = Means()
    batch = Batch(
        images=torch.rand(8, 3, 16, 16, device="cuda") * 2 - 1,
        labels=torch.arange(8, device="cuda") % 5,
        features=torch.randn(8, 4, 6, device="cuda"),
        draws=Draws(0, torch.arange(8, device="cuda")),
    )

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            losses = built.loss(batch)
        sum(losses.values()).mean().backward()
        for name, values in losses.items():
            means.add(name, values)
        means.add("grad_norm", apply_gradients(trained, optimizers, 1.0))
        built.after_step(8, 8)

    step()  # optimizers make their states in the first one
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
