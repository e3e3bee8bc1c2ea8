"""The plan is held against steps that are really taken."""

import pytest
import torch
import yaml
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.data.loader import Batch
from selfdistill.distributed import World
from selfdistill.draws import Draws
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.registry import build_method, build_network
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dinov3 import Teacher
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.teacher_config import TeacherConfig
from selfdistill.pipelines.plan.step import outline, teacher_flops, trace_step
from selfdistill.pipelines.plan.trace import _CudaAutocast, tracing
from selfdistill.pipelines.train.config import TrainConfig
from selfdistill.pipelines.train.loop import fit

TOLERANCE = 0.2  # of the issue; where the plan is exact the tests ask for more


class RandomBatches:
    """A loader of random images, of which `fit` takes its batches."""

    def __init__(self, network: NetworkConfig, device: str = "cpu") -> None:
        self._network, self._device = network.root, device

    def stream(self, places):
        return map(self.load, places)

    def load(self, places):
        net, n = self._network, len(places)
        of_images = isinstance(net, DSDViTConfig)
        side = net.resolution if of_images else net.latent_size
        with torch.device(self._device):
            return Batch(
                images=torch.rand(n, 3, side, side) * 2 - 1,
                labels=torch.arange(n) % net.num_classes,
                features=torch.randn(n, net.num_tokens, net.teacher_dim) if of_images else None,
                draws=Draws(0, torch.as_tensor(places, device=self._device)),
            )


@pytest.fixture
def wide(network) -> NetworkConfig:
    """A network in which bookkeeping does not show."""
    size = {
        "resolution": 64, "width": 128, "depth": 3, "num_heads": 4, "latent_dim": 16,
        "num_registers": 4, "teacher_dim": 64,
    }  # fmt: skip
    return NetworkConfig.model_validate({**network.model_dump(), **size})


def steps(train_config, num_steps=1, batch=4, micro=4, **changes):
    """Return the configuration of some steps without diagnostics."""
    values = {
        "batch_size": batch, "micro_batch_size": micro, "total_nimg": num_steps * batch,
        "log_nimg": batch, "checkpoint_nimg": num_steps * batch, "num_probe_images": 0,
    }  # fmt: skip
    return TrainConfig.model_validate({**train_config.model_dump(), **values, **changes})


def take(network, method, config, directory):
    """Train as a row does, on the CPU."""
    torch.manual_seed(0)
    built = build_method(network, method, {})
    world = World(0, 1, torch.device("cpu"))
    fit(built, RandomBatches(network), config, world, directory)
    return built


def peak_of(run) -> int:
    """Return the most bytes that were allocated at once, as torch's profiler has it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak


@pytest.mark.parametrize(("micro", "recomputed"), [(2, False), (4, True)])
def test_the_flop_of_a_step_are_those_that_are_counted_in_a_real_one(
    network, method, train_config, tmp_path, micro, recomputed
):
    config = steps(train_config, micro=micro, recompute_activations=recomputed)
    with FlopCounterMode(display=False) as counter:
        take(network, method, config, tmp_path)
    step = trace_step(network, method, config, 16, on_gpu=False)
    planned = 4 // micro * step.loss_flops + step.update_flops
    assert planned == counter.get_total_flops()


GRID = {"num_steps": 4}
OWN = {"solver": "ddim", **GRID, "guidance": 1.5, "guidance_interval": (0, 1)}
EXPLICIT = {"form": "explicit", "weight": "auto"}
IMPLICIT = {"form": "implicit", "mix_prev": 0.2, "site": "gated"}
TUNINGS = {
    "ssd": {"name": "ssd", "target": EXPLICIT, "grid": GRID},
    "issd": {"name": "ssd", "target": IMPLICIT, "grid": GRID},
    "synthetic": {"name": "ssd", "target": EXPLICIT, "grid": GRID, "synthetic": OWN},
    "progressive": {"name": "progressive", "grid": GRID, "weighting": "none"},
    "diffusion": {"name": "diffusion", "ema_decay": 0.9},
}


def transformer(name="dit", **changes):
    values = {
        "name": name, "latent_size": 8, "latent_channels": 3, "patch_size": 2, "width": 64,
        "depth": 4, "num_heads": 2, "num_classes": 5, "learn_sigma": name == "dit",
    }  # fmt: skip
    more = {"noise_at": 0, "projectors": None} if name == "sit" else {}
    return NetworkConfig.model_validate(values | more | changes)


def tuning(name):
    return MethodConfig.model_validate({**TUNINGS[name], "class_dropout": 0.1})


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("dit", name) for name in TUNINGS), ("sit", "ssd"), ("dsd_vit", "issd"), ("dsd_vit", "ssd")],
)
def test_the_flop_of_a_tuning_step_are_counted_likewise(
    network, train_config, tmp_path, kind, name
):
    net = network if kind == "dsd_vit" else transformer(kind)
    config = steps(train_config)
    with FlopCounterMode(display=False) as counter:
        take(net, tuning(name), config, tmp_path)
    step = trace_step(net, tuning(name), config, 16, on_gpu=False)
    assert step.loss_flops + step.update_flops == counter.get_total_flops()


def test_what_passes_leave_to_be_mixed_is_counted_as_memory(train_config):
    """Two tensors a block, (N, L, D) each; SSD holds one more output instead, its second target."""
    config = steps(train_config, batch=16, micro=16)
    alone, mixed = (
        trace_step(transformer(), tuning(name), config, 16, on_gpu=False).backward
        for name in ("ssd", "issd")
    )
    recorded, output = 2 * 4 * 16 * 16 * 64 * 4, 16 * 6 * 16 * 16 * 4
    assert mixed - alone == pytest.approx(recorded - output, rel=0.01)


@pytest.mark.parametrize(
    ("batch", "micro", "recomputed"), [(4, 4, False), (4, 2, True), (1, 1, False)]
)
def test_the_memory_of_a_step_is_what_the_profiler_sees(
    wide, method, train_config, tmp_path, batch, micro, recomputed
):
    config = steps(
        train_config, num_steps=2, batch=batch, micro=micro, recompute_activations=recomputed
    )
    measured = peak_of(lambda: take(wide, method, config, tmp_path))
    step = trace_step(wide, method, config, 16, on_gpu=False)
    assert max(step.backward, step.update) == pytest.approx(measured, rel=0.02)


def test_held_memory_is_that_of_the_networks_and_optimizers_that_are_built(
    wide, method, train_config
):
    built = build_method(wide, method, {})
    step = trace_step(wide, method, steps(train_config), 16, num_ranks=2)
    trained = [p for p in built.network.parameters() if p.requires_grad]
    assert step.num_trained == sum(p.numel() for p in trained)
    assert step.gradients == 4 * step.num_trained
    networks = [built.network, built.average]
    held = sum(t.nbytes for one in networks for t in (*one.parameters(), *one.buffers()))
    assert step.weights == held
    assert step.frozen == sum(t.nbytes for t in built.perceptual.buffers())
    assert step.checkpoint == sum(t.nbytes for t in built.state_dict().values())
    matrices = sum(p.numel() for p in built.network.hidden_matrices())
    momenta = matrices + 2 * (step.num_trained - matrices)
    assert step.states == pytest.approx(4 * momenta, rel=1e-3)  # and AdamW's counters


def test_the_flop_of_dsd_b_follow_from_its_sizes(project):
    """24 D^2 + 4 L D a token and block; two passes with gradient, the averaged one without."""
    text = (project / "conf/base/parameters/dsd.yml").read_text(encoding="utf-8")
    row = yaml.safe_load(text)["dsd_b"]
    network = NetworkConfig.model_validate(row["network"])
    off = {
        "alignment": 0.0, "perceptual": 0.0, "representation": 0.0, "velocity": 0.0,
        "classification": 0.0, "reconstruction": 0.0,
    }  # fmt: skip
    values = {**row["method"], "weights": {**row["method"]["weights"], **off}}
    method = MethodConfig.model_validate(values)
    train = TrainConfig.model_validate({**row["train"], "micro_batch_size": 1})
    step = trace_step(network, method, train, 256, num_ranks=8)
    net = network.root
    D, L = net.width, net.num_tokens + net.num_registers
    block = L * (24 * D**2 + 4 * L * D)  # a forward pass
    flash = 2.5 * 4 * L**2 * D - 2 * 4 * L**2 * D  # backward computes the scores once more
    passes = (net.depth - 1) * (3 * block + flash) * 2 + (net.depth - 1) * block
    L = net.num_tokens  # the DiT layer sees no registers
    head = 3 * (L * (24 * D**2 + 4 * L * D) + 12 * D**2) + 0.5 * 4 * L**2 * D
    assert step.loss_flops == pytest.approx(passes + head, rel=0.02)
    assert step.loss_flops > passes


def test_a_teacher_at_work_is_in_frozen_weights_and_in_the_flop(network, method, train_config):
    values = {
        "architecture": "vit_small_patch16_dinov3", "weights": "pretrained", "patch_size": 8,
        "overrides": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}, "dim": 64,
        "batch_size": 4, "cache": {"mirrored": False, "dtype": "float16"},
    }  # fmt: skip
    config = TeacherConfig.model_validate(values)
    net = NetworkConfig.model_validate({**network.model_dump(), "teacher_dim": 64})
    alone = trace_step(net, method, steps(train_config), 16)
    beside = trace_step(net, method, steps(train_config), 16, teacher=config)
    teacher = Teacher(config.model_copy(update={"weights": "random"}), net.root.resolution)
    weights = sum(t.nbytes for t in (*teacher.parameters(), *teacher.buffers()))
    assert beside.frozen - alone.frozen == weights
    with FlopCounterMode(display=False) as counter:
        teacher(torch.zeros(1, 3, 16, 16))
    assert teacher_flops(config, 16) == counter.get_total_flops()
    assert beside.loss_flops - alone.loss_flops == 4 * counter.get_total_flops()


def test_published_frozen_networks_are_planned_without_their_files(network, method):
    published = method.model_dump() | {"perceptual_network": "lpips_vgg16"}
    built = outline(network, MethodConfig.model_validate(published))
    assert built.perceptual.weight_0.device.type == "meta"
    assert built.perceptual.weight_28.shape == (512, 512, 3, 3)


def test_half_precision_halves_what_products_keep_and_norms_stay_in_float32():
    with tracing(), torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 8)
        y = F.linear(x, torch.randn(4, 8))
        assert y.dtype == torch.bfloat16
        assert F.layer_norm(y, (4,)).dtype == torch.float32
        assert y.softmax(1).dtype == torch.float32
    with _CudaAutocast():
        assert F.layer_norm(y, (4,)).dtype == torch.bfloat16  # no autocast, no difference


def test_a_batch_that_does_not_divide_among_the_gpus_is_refused(network, method, train_config):
    with pytest.raises(ValueError, match="does not divide into 3 ranks"):
        trace_step(network, method, steps(train_config), 16, num_ranks=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_memory_of_a_gpu_is_within_a_fifth(project, recomputed, tmp_path):
    text = (project / "conf/base/parameters/dsd.yml").read_text(encoding="utf-8")
    row = yaml.safe_load(text)["dsd_s"]
    network = NetworkConfig.model_validate(row["network"])
    method = MethodConfig.model_validate({**row["method"], "perceptual_network": "lpips_random"})
    small = {"batch_size": 16, "micro_batch_size": 16, "total_nimg": 48, "compile": False}
    interval = {"log_nimg": 16, "checkpoint_nimg": 48, "num_probe_images": 0}
    config = TrainConfig.model_validate(
        {**row["train"], **small, **interval, "recompute_activations": recomputed}
    )
    torch.cuda.reset_peak_memory_stats()
    with torch.random.fork_rng():
        built = build_method(network, method, {}).cuda()
    world = World(0, 1, torch.device("cuda", 0))
    fit(built, RandomBatches(network, "cuda"), config, world, tmp_path)
    measured = torch.cuda.max_memory_allocated()
    step = trace_step(network, method, config, 16)
    assert max(step.backward, step.update) == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("adversary", [True, False])
def test_a_step_of_three_networks_in_turns_is_planned(train_config, adversary):
    """Weights of generator, average, fake-score network and teacher; gradients of two."""
    network = NetworkConfig.model_validate(
        {
            "name": "ddpmpp", "latent_size": 16, "latent_channels": 3, "width": 16,
            "multipliers": [1, 1], "num_blocks": 1, "attention_sides": [8], "num_classes": 5,
            "conditional": True, "dropout": 0.1, "augment_dim": 9,
        }
    )  # fmt: skip
    terms = {
        "generator_weight": 0.01, "fake_weight": 1, "rests_nimg": 0, "joins_nimg": 0,
        "largest_gradient": 1.0,
    }  # fmt: skip
    method = MethodConfig.model_validate(
        {
            "name": "sid", "alpha": 1.0, "start_level": 2.5, "largest_share": 0.8,
            "log_mean": -1.2, "log_deviation": 1.2, "generator_weight": 100, "fake_weight": 1,
            "half_life_nimg": 50, "ramp_up": 0.5, "normalize_weights": False,
            "adversary": terms if adversary else None,
            "augment": {"probability": 0.12} if adversary else None,
        }
    )  # fmt: skip
    config = train_config.model_copy(update={"micro_batch_size": 8})
    cost = trace_step(network, method, config, 16, on_gpu=False)
    with torch.device("meta"):
        one = 4 * sum(p.numel() for p in build_network(network).parameters())
    assert cost.num_trained * 4 == 2 * one
    assert cost.gradients == 2 * one
    assert cost.weights + cost.frozen == pytest.approx(4 * one, rel=0.01)
    assert cost.held <= 40 / 4 * one  # 40 bytes a parameter
    assert cost.checkpoint == pytest.approx(2 * one, rel=0.01)  # generator and average
