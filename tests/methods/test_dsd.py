"""The gradient table and the closed forms of DSD (arXiv:2511.14716)."""

import pytest
import torch

from selfdistill.data.loader import Batch
from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.config import DSDConfig
from selfdistill.methods.dsd import DSD
from selfdistill.networks.config import DSDViTConfig
from selfdistill.networks.dsd_vit import DSDViT

NETWORK = DSDViTConfig(
    name="dsd_vit", resolution=32, patch_size=8, width=32, depth=3, num_heads=2, latent_dim=8,
    num_registers=2, num_classes=5, teacher_dim=12, teacher_block=0,
)  # fmt: skip
CONFIG = {
    "name": "dsd",
    "weights": {
        "distillation": 1.0, "velocity": 1.0, "reconstruction": 1.0, "alignment": 0.5,
        "classification": 0.1,
    },
    "time_distribution": "logit_normal", "mask_probability": 0.5, "mask_ratio": (0.1, 0.75),
    "class_dropout": 0.1, "ema_decay": 0.9,
}  # fmt: skip
N = 64


def make(**changes):
    torch.manual_seed(0)
    network = DSDViT(NETWORK)
    for layer in (network.dit_layer, network.z0_out, network.velocity_out):
        torch.nn.init.normal_(layer.modulation.weight, std=0.1)
    torch.nn.init.normal_(network.velocity_out.linear.weight, std=0.1)
    return DSD(network, DSDConfig.model_validate(CONFIG | changes))


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.rand(N, 3, 32, 32, generator=generator) * 2 - 1,
        labels=torch.arange(N) % 5,
        features=torch.randn(N, 16, 12, generator=generator),
        draws=Draws(0, torch.arange(N)),
    )


def reached(method, batch, term):
    """Return the top-level modules of the network that a loss term sends gradients to."""
    method.network.zero_grad(set_to_none=True)
    method.average.requires_grad_(True)  # a leak into the target would show
    method.loss(batch)[term].mean().backward()
    assert all(p.grad is None for p in method.average.parameters())
    method.average.requires_grad_(False)
    return {
        name.split(".")[0]
        for name, p in method.network.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


HEAD = {"dit_layer", "time_embedding", "class_embedding"}
ENCODER = {"image_in", "mask_token", "registers", "blocks", "norm", "latent_out"}
BACKBONE = ENCODER | {"latent_in"}


@pytest.mark.parametrize(
    ("term", "modules"),
    [
        ("distillation", BACKBONE | HEAD | {"z0_out"}),
        ("velocity", HEAD | {"velocity_out"}),
        ("reconstruction", BACKBONE | {"image_out"}),
        ("alignment", BACKBONE | {"teacher_out"}),
        ("classification", ENCODER | {"class_out"}),
    ],
)
def test_each_term_trains_exactly_its_modules(batch, term, modules):
    assert reached(make(), batch, term) == modules


def test_the_self_distillation_gradient_reaches_the_encoder_through_the_noised_latent(batch):
    """Unlike in REPA-E, z_t is not detached (below Eq. 8)."""
    assert "image_in" in reached(make(mask_probability=0.0), batch, "distillation")


def test_terms_are_the_equations(batch):
    method = make(mask_probability=0.0, class_dropout=0.0)
    network, x = method.network, batch.images
    losses = method.loss(batch)

    t = batch.draws.normal("t", 1, 1).sigmoid()
    eps = batch.draws.normal("eps", 16, 8)
    z0 = network.encode(x)
    z_t = t * z0 + (1 - t) * eps
    h, teacher = network.denoise(z_t)
    flat = t.flatten()
    z0_pred = network.predict_z0(h, flat, batch.labels)
    v_pred = network.predict_velocity(h, flat, batch.labels)
    v = z0 - eps

    def cosine(a, b):
        return ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean(1)

    expected = {
        "distillation": (z0_pred - method.average.encode(x)).square().mean((1, 2)),
        "velocity": (v_pred - v).square().mean((1, 2)) + 1 - cosine(v_pred, v),
        "reconstruction": (network.decode(h) - x).abs().mean((1, 2, 3)),
        "alignment": 0.5 * (1 - cosine(teacher, batch.features)),
        "classification": 0.1
        * -network.classify(z0).log_softmax(-1)[torch.arange(N), batch.labels],
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_velocity_is_learned_from_whole_images_with_the_same_expectation(batch):
    method = make()
    masked = method.draw_mask(batch.draws).any(dim=1)
    velocity = method.loss(batch)["velocity"]
    assert masked.any()
    assert not velocity[masked].any()
    assert (velocity[~masked] > 0).all()
    free = make(mask_probability=0.0)
    whole = free.loss(batch)["velocity"]
    torch.testing.assert_close(velocity[~masked], 2 * whole[~masked])


def test_masks_cover_half_of_the_rows_and_their_range_of_patches():
    method = make()
    mask = method.draw_mask(Draws(0, torch.arange(4000)))
    share = mask.float().mean(dim=1)
    assert abs((share > 0).float().mean() - 0.5) < 0.04
    assert share[share > 0].min() >= 1 / 16
    assert share.max() == 0.75
    everywhere = mask.float().mean(dim=0)
    assert (everywhere - everywhere.mean()).abs().max() < 0.05


def test_labels_are_dropped_at_their_rate():
    labels = torch.zeros(5000, dtype=torch.int64)
    dropped = make().drop_labels(labels, Draws(0, torch.arange(5000)))
    assert set(dropped.tolist()) == {0, 5}
    assert abs((dropped == 5).float().mean() - 0.1) < 0.02


def test_flow_times_follow_their_law():
    draws = Draws(0, torch.arange(20_000))
    t = make().draw_time(draws)
    logit = torch.logit(t)
    assert t.shape == (20_000, 1, 1)
    assert abs(logit.mean()) < 0.03
    assert abs(logit.std() - 1) < 0.03
    uniform = make(time_distribution="uniform").draw_time(draws)
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.var() - 1 / 12) < 0.003


def test_a_batch_is_the_sum_of_its_parts(batch):
    """Nothing in the loss mixes samples, so micro-batches and ranks may split it anywhere."""
    method = make()
    whole = method.loss(batch)
    parts = [
        method.loss(
            Batch(
                batch.images[s], batch.labels[s], batch.features[s], Draws(0, batch.draws.index[s])
            )
        )
        for s in (slice(0, 24), slice(24, N))
    ]
    for name, value in whole.items():
        together = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(value, together, atol=1e-5, rtol=1e-4)


def test_sampling_integrates_the_averaged_velocity_and_decodes():
    method = make()
    method.after_step(64, 64)
    eps, labels = torch.randn(3, *method.noise_shape()), torch.tensor([0, 1, 2])
    network = method.average
    z = eps
    for k in range(4):
        h, _ = network.denoise(z)
        time = torch.full((3,), k / 4)
        v = network.predict_velocity(h, time, labels)
        if k / 4 >= 0.5:
            u = network.predict_velocity(h, time, torch.full((3,), 5))
            v = u + 2.0 * (v - u)
        z = z + v / 4
    expected = network.decode(network.denoise(z)[0])
    solver = SolverConfig(
        solver="euler", num_steps=4, timestep_shift=1.0, guidance=2.0, guidance_interval=(0.5, 1.0)
    )
    torch.testing.assert_close(method.sample(eps, labels, solver), expected)


def test_guidance_1_never_asks_for_the_null_class(monkeypatch):
    method = make()
    asked = []
    original = method.average.predict_velocity
    monkeypatch.setattr(
        method.average,
        "predict_velocity",
        lambda h, t, labels: asked.append(labels) or original(h, t, labels),
    )
    solver = SolverConfig(
        solver="euler", num_steps=3, timestep_shift=1.0, guidance=1.0, guidance_interval=(0.0, 1.0)
    )
    method.sample(torch.randn(1, 16, 8), torch.tensor([2]), solver)
    assert len(asked) == 3
    assert all(int(labels) == 2 for labels in asked)


def test_latents_are_compared_on_one_scale(batch):
    """Scaling the head's raw output does not change the distillation loss."""
    method = make()
    before = method.loss(batch)["distillation"]
    with torch.no_grad():
        method.network.z0_out.linear.weight.mul_(3)
    torch.testing.assert_close(before, method.loss(batch)["distillation"], atol=1e-4, rtol=1e-4)
