"""The gradient table and the closed forms of DSD (arXiv:2511.14716)."""

import pytest
import torch

from selfdistill.data.loader import Batch
from selfdistill.data.photometric import photometric
from selfdistill.diffusion import paths
from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.dsd import DSD
from selfdistill.methods.dsd_config import DSDConfig
from selfdistill.metrics.rank import effective_rank
from selfdistill.networks.dsd_vit import DSDViT
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.lpips import random_lpips

NETWORK = {
    "name": "dsd_vit", "resolution": 32, "patch_size": 8, "width": 32, "depth": 3, "num_heads": 2,
    "latent_dim": 8, "normalize_latent": True, "num_registers": 2, "num_classes": 5,
    "teacher_dim": 12, "teacher_block": 0, "representation_head": True,
}  # fmt: skip
WEIGHTS = {
    "distillation": 1.0, "velocity": 1.0, "reconstruction": 1.0, "perceptual": 0.8,
    "alignment": 0.5, "representation": 0.3, "classification": 0.1,
}  # fmt: skip
MASKED = {"probability": 0.5, "mask_ratio": (0.1, 0.75), "photometric": None}
COLOURED = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "jitter_probability": 0.8,
    "gray_probability": 0.2, "blur_probability": 0.5, "blur_kernel": 9, "blur_sigma": (0.1, 2.0),
    "solarize_probability": 0.2, "solarize_threshold": 0.5,
}  # fmt: skip
CONFIG = {
    "name": "dsd", "target": "average", "prediction": "z0", "velocity_target": "whole",
    "weights": WEIGHTS, "augmentation": MASKED, "perceptual_network": "lpips_random",
    "time_distribution": "logit_normal", "class_dropout": 0.1, "ema_decay": 0.9,
}  # fmt: skip
CASES = {
    "naive": {"target": "live", "prediction": "velocity"},
    "decoupled": {"target": "detached", "prediction": "velocity"},
    "transformed": {"target": "detached", "prediction": "z0"},
    "averaged": {"target": "average", "prediction": "z0"},
}
N = 64


def make(network=(), **changes):
    torch.manual_seed(0)
    vit = DSDViT(DSDViTConfig.model_validate(NETWORK | dict(network)))
    for layer in (vit.dit_layer, vit.z0_out, vit.velocity_out):
        torch.nn.init.normal_(layer.modulation.weight, std=0.1)
    torch.nn.init.normal_(vit.velocity_out.linear.weight, std=0.1)
    return DSD(vit, DSDConfig.model_validate(CONFIG | changes), {})


def make_case(case, **weights):
    """Return a case of the collapse study with the given terms only."""
    zero = dict.fromkeys(WEIGHTS, 0.0)
    return make(
        weights=zero | {"distillation": 1.0} | weights,
        augmentation=None,
        velocity_target="average",
        **CASES[case],
    )


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
        ("perceptual", BACKBONE | {"image_out"}),
        ("alignment", BACKBONE | {"teacher_out"}),
        ("representation", BACKBONE | {"representation_out"}),
        ("classification", ENCODER | {"class_out"}),
    ],
)
def test_each_term_trains_exactly_its_modules(batch, term, modules):
    assert reached(make(), batch, term) == modules


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": None},
        {"weights": {**WEIGHTS, "velocity": 0.0, "classification": 0.0}},
        {"weights": {**WEIGHTS, "alignment": 0.0, "representation": 0.0, "perceptual": 0.0}},
        *(
            {
                **case, "augmentation": None, "velocity_target": "average",
                "weights": dict.fromkeys(WEIGHTS, 0.0) | {"distillation": 1, "reconstruction": 1},
            }
            for case in CASES.values()
        ),
    ],
)  # fmt: skip
def test_what_asks_for_a_gradient_is_what_gets_one(batch, changes):
    """Ranks wait for the gradient of every parameter that asks for one."""
    method = make(**changes)
    sum(method.loss(batch).values()).mean().backward()
    asking = {name for name, p in method.network.named_parameters() if p.requires_grad}
    got = {name for name, p in method.network.named_parameters() if p.grad is not None}
    assert asking == got


def test_alignment_trains_the_aligned_block_of_the_noisy_pass_and_none_above_it(batch):
    """And all of the encoder, through the noised latent, which is not detached."""
    method = make(network={"depth": 4}, augmentation=None)
    with torch.no_grad():
        z_t = method.network.encode(batch.images)
    _, teacher_pred = method.network.denoise(z_t)
    teacher_pred.mean().backward()
    reached = [
        any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
        for block in method.network.blocks
    ]
    assert reached == [True, False, False]


def test_the_self_distillation_gradient_reaches_the_encoder_through_the_noised_latent(batch):
    """Unlike in REPA-E, z_t is not detached (below Eq. 8)."""
    assert "image_in" in reached(make(augmentation=None), batch, "distillation")


def latents(seed=0):
    """Return (z0, z0_pred, eps, t), float64, as if a network had made the first two."""
    generator = torch.Generator().manual_seed(seed)
    z0, z0_pred, eps = torch.randn(3, 5, 16, 8, generator=generator, dtype=torch.float64)
    t = torch.rand(5, 1, 1, generator=generator, dtype=torch.float64) * 0.9
    return z0, z0_pred, eps, t


def test_velocity_and_clean_latent_losses_are_equal_in_value():
    """Eq. 9 = Eq. 10 = Eq. 12, w_t = 1 / (1 - t)^2; in gradient too while nothing is detached."""
    z0, z0_pred, eps, t = latents()

    def gradients(loss_of):
        z, pred = z0.clone().requires_grad_(), z0_pred.clone().requires_grad_()
        z_t = paths.interpolate(z, eps, t)
        loss = loss_of(z, z_t, pred).sum()
        return loss, *torch.autograd.grad(loss, (z, pred))

    eq9 = gradients(
        lambda z, z_t, pred: (
            paths.velocity_from_z0(z_t, pred, t) - paths.velocity(z, eps)
        ).square()
    )
    eq10 = gradients(
        lambda z, z_t, pred: (
            paths.velocity_from_z0(z_t, pred, t) - paths.velocity_from_z0(z_t, z, t)
        ).square()
    )
    eq12 = gradients(lambda z, z_t, pred: (pred - z).square() / (1 - t) ** 2)
    for a, b, c in zip(eq9, eq10, eq12, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_with_a_detached_target_the_two_losses_pull_the_encoder_apart():
    """Through the velocity, -z_t / (1 - t) stays in the encoder's gradient: t / (1 - t) too much.

    Regressing the clean latent on a detached target moves the encoder through the prediction
    alone, which is why Eq. 13 is computed in latent space.
    """
    z0, z0_pred, eps, t = latents()
    z = z0.clone().requires_grad_()
    z_t = paths.interpolate(z, eps, t)
    pred = z0_pred + 0.3 * z_t  # a prediction that depends on what it sees
    through_velocity = paths.velocity_from_z0(z_t, pred, t) - (z.detach() - eps)
    in_latent_space = (pred - z.detach()) / (1 - t)
    torch.testing.assert_close(through_velocity, in_latent_space)  # the same value ...
    (a,) = torch.autograd.grad(through_velocity.square().sum(), z, retain_graph=True)
    (b,) = torch.autograd.grad(in_latent_space.square().sum(), z, retain_graph=True)
    residual = in_latent_space.detach()
    torch.testing.assert_close(a - b, -2 * residual * t / (1 - t))  # ... and another gradient
    assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) < 0.9


def test_the_cases_are_their_equations(batch):
    """Eq. 2, 8, 12 without weight and 13, literally, on the same z_t."""
    t = batch.draws.normal("t", 1, 1).sigmoid()
    eps = batch.draws.normal("eps", 16, 8)
    for case in CASES:
        method = make_case(case)
        labels = method.drop_labels(batch.labels, batch.draws)
        with torch.no_grad():  # so that the average is another network than the online one
            method.average.latent_out.weight.mul_(-1)
        z0 = method.network.encode(batch.images)
        h, _ = method.network.denoise(t * z0 + (1 - t) * eps)
        if case in ("naive", "decoupled"):
            expected = method.network.predict_velocity(h, t.flatten(), labels) - (z0 - eps)
        else:
            target = method.average.encode(batch.images) if case == "averaged" else z0
            expected = method.network.predict_z0(h, t.flatten(), labels) - target
        losses = method.loss(batch)
        assert set(losses) == {"distillation"}
        torch.testing.assert_close(losses["distillation"], expected.square().mean((1, 2)), msg=case)


def encoder_gradient(method, batch):
    method.network.zero_grad(set_to_none=True)
    method.loss(batch)["distillation"].mean().backward()
    return method.network.latent_out.weight.grad.clone()


def test_detaching_the_target_takes_the_targets_gradient_and_nothing_else(batch):
    """Case 2 is case 1 less d/dz2; the rest still moves the encoder, through z_t (Eq. 8)."""
    naive, decoupled = make_case("naive"), make_case("decoupled")
    a, b = encoder_gradient(naive, batch), encoder_gradient(decoupled, batch)
    z = naive.network.encode(batch.images)
    t = batch.draws.normal("t", 1, 1).sigmoid()
    eps = batch.draws.normal("eps", 16, 8)
    labels = naive.drop_labels(batch.labels, batch.draws)
    with torch.no_grad():
        h, _ = naive.network.denoise(t * z + (1 - t) * eps)
        v_pred = naive.network.predict_velocity(h, t.flatten(), labels)
    target_alone = (v_pred - (z - eps)).square().mean((1, 2)).mean()
    (c,) = torch.autograd.grad(target_alone, naive.network.latent_out.weight)
    torch.testing.assert_close(a - b, c, atol=1e-6, rtol=1e-4)
    assert b.abs().max() > 0


def test_the_gradient_of_a_live_target_shrinks_the_variance_of_latents():
    """Eq. 7: of E || v - (z - eps) ||^2 the network-free part is the posterior's variance.

    With the best v for each z_t its value is E w_t Var[z | z_t], which falls with the scale of z.
    """
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    losses = []
    for scale in (1.0, 0.5, 0.1):
        t = 0.5
        z_t = t * scale * z + (1 - t) * eps
        v = scale * z - eps
        slope = (v * z_t).mean() / z_t.square().mean()  # for Gaussians the best v is linear
        losses.append(float((v - slope * z_t).square().mean()))
        posterior = scale**2 * (1 - t) ** 2 / (t**2 * scale**2 + (1 - t) ** 2)
        assert losses[-1] == pytest.approx(posterior / (1 - t) ** 2, rel=0.02)
    assert losses[0] > losses[1] > losses[2]


def test_terms_are_the_equations(batch):
    method = make(augmentation=None, class_dropout=0.0)
    with torch.no_grad():  # so that the average is another network than the online one
        method.average.latent_out.weight.mul_(-1)
        method.average.norm.bias.add_(0.1)
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

    z0_target, features = method.average.encode_with_features(x)
    centred = features - features.mean(-1, keepdim=True)
    features = centred / centred.square().mean(-1, keepdim=True).sqrt()
    expected = {
        "distillation": (z0_pred - z0_target).square().mean((1, 2)),
        "velocity": (v_pred - v).square().mean((1, 2)) + 1 - cosine(v_pred, v),
        "reconstruction": (network.decode(h) - x).abs().mean((1, 2, 3)),
        "perceptual": 0.8 * random_lpips()(network.decode(h), x),
        "alignment": 0.5 * (1 - cosine(teacher, batch.features)),
        "representation": 0.3 * (1 - cosine(network.predict_features(h), features)),
        "classification": 0.1
        * -network.classify(z0).log_softmax(-1)[torch.arange(N), batch.labels],
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_velocity_is_learned_from_whole_images_with_the_same_expectation(batch):
    method = make()
    _, _, augmented = method.augment(batch.images, batch.draws)
    velocity = method.loss(batch)["velocity"]
    assert augmented.any()
    assert not velocity[augmented].any()
    assert (velocity[~augmented] > 0).all()
    whole = make(augmentation=None).loss(batch)["velocity"]
    torch.testing.assert_close(velocity[~augmented], 2 * whole[~augmented])


def test_the_velocity_may_be_learned_towards_the_averaged_latent_of_all_images(batch):
    method = make(augmentation={**MASKED, "probability": 1.0}, velocity_target="average")
    with torch.no_grad():
        method.average.latent_out.weight.mul_(-1)
        x_aug, mask, _ = method.augment(batch.images, batch.draws)
        t = batch.draws.normal("t", 1, 1).sigmoid()
        eps = batch.draws.normal("eps", 16, 8)
        h, _ = method.network.denoise(t * method.network.encode(x_aug, mask) + (1 - t) * eps)
        labels = method.drop_labels(batch.labels, batch.draws)
        v_pred = method.network.predict_velocity(h, t.flatten(), labels)
        v = method.average.encode(batch.images) - eps
    expected = (v_pred - v).square().mean((1, 2))
    expected += 1 - torch.cosine_similarity(v_pred, v, dim=-1).mean(1)
    torch.testing.assert_close(method.loss(batch)["velocity"], expected)


def test_colours_change_for_the_online_branch_of_the_augmented_images_alone(batch, monkeypatch):
    method = make(augmentation={**MASKED, "photometric": COLOURED})
    x_aug, mask, augmented = method.augment(batch.images, batch.draws)
    changed = (x_aug != batch.images).flatten(1).any(dim=1)
    assert changed.any()
    assert not changed[~augmented].any()
    assert not mask[~augmented].any()
    expected = photometric(batch.images, batch.draws, method.config.augmentation.photometric)
    assert torch.equal(x_aug[augmented], expected[augmented])
    seen = []
    original = method.average.encode_with_features
    monkeypatch.setattr(
        method.average, "encode_with_features", lambda x: seen.append(x) or original(x)
    )
    method.loss(batch)
    assert len(seen) == 1
    assert torch.equal(seen[0], batch.images)  # the target's branch sees the clean images


def test_a_weight_of_zero_leaves_its_term_and_its_network_out(batch):
    weights = dict.fromkeys(WEIGHTS, 0.0) | {"reconstruction": 2.0}
    method = make(weights=weights)
    assert set(method.loss(batch)) == {"reconstruction"}
    assert method.perceptual is None
    assert method.config.frozen_weights == ()


def test_published_lpips_asks_for_its_two_files():
    config = DSDConfig.model_validate(CONFIG | {"perceptual_network": "lpips_vgg16"})
    assert config.frozen_weights == ("vgg16", "lpips_vgg")


def test_a_method_without_frozen_networks_samples_but_does_not_train(batch):
    method = DSD(make().network, DSDConfig.model_validate(CONFIG))
    solver = SolverConfig(
        solver="euler", num_steps=1, timestep_shift=1.0, guidance=1.0, guidance_interval=(0.0, 1.0)
    )
    images = method.sample(
        torch.randn(2, 16, 8), torch.tensor([0, 1]), solver, Draws(0, torch.arange(2))
    )
    assert images.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="it only samples"):
        method.loss(batch)


def test_frozen_networks_are_no_part_of_a_checkpoint():
    with_lpips, without = make(), make(weights={**WEIGHTS, "perceptual": 0.0})
    assert with_lpips.state_dict().keys() == without.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target": "live"}, "target 'live' is the online latent itself"),
        ({"target": "detached", "augmentation": None}, "weights.representation"),
        ({"augmentation": {**MASKED, "probability": 1.0}}, "leaves no whole image"),
        ({"augmentation": {**MASKED, "mask_ratio": (0.5, 0.1)}}, "not an increasing range"),
    ],
)
def test_objectives_that_contradict_themselves_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        DSDConfig.model_validate(CONFIG | changes)


def test_a_term_without_its_head_is_refused():
    with pytest.raises(ValueError, match="representation_head: true"):
        make(network={"representation_head": False})


def test_masks_cover_half_of_the_rows_and_their_range_of_patches():
    method = make()
    x0 = torch.zeros(4000, 3, 1, 1)
    _, mask, _ = method.augment(x0, Draws(0, torch.arange(4000)))
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
    torch.testing.assert_close(
        method.sample(eps, labels, solver, Draws(0, torch.arange(3))), expected
    )


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
    method.sample(torch.randn(1, 16, 8), torch.tensor([2]), solver, Draws(0, torch.arange(1)))
    assert len(asked) == 3
    assert all(int(labels) == 2 for labels in asked)


def test_latents_are_compared_on_one_scale(batch):
    """Scaling the head's raw output does not change the distillation loss."""
    method = make()
    before = method.loss(batch)["distillation"]
    with torch.no_grad():
        method.network.z0_out.linear.weight.mul_(3)
    torch.testing.assert_close(before, method.loss(batch)["distillation"], atol=1e-4, rtol=1e-4)


def test_latents_without_normalisation_keep_their_scale(batch):
    method = make(network={"normalize_latent": False})
    before = method.encode(batch.images)
    with torch.no_grad():
        method.average.latent_out.weight.mul_(3)
        method.average.latent_out.bias.mul_(3)
    torch.testing.assert_close(method.encode(batch.images), 3 * before)


def test_diagnostics_are_those_of_the_latents_that_the_loss_sees(batch):
    method = make()
    with torch.no_grad():
        method.average.latent_out.weight.mul_(-1)
        x_aug, mask, _ = method.augment(batch.images, batch.draws)
        t = batch.draws.normal("t", 1, 1).sigmoid()
        eps = batch.draws.normal("eps", 16, 8)
        online = method.network.encode(x_aug, mask)
        h, _ = method.network.denoise(t * online + (1 - t) * eps)
        projection = method.network.predict_z0(h, t.flatten(), batch.labels)
        target = method.average.encode(batch.images)
        x_pred = method.network.decode(
            method.network.denoise(method.network.encode(batch.images))[0]
        )
    found = method.diagnose(batch)
    for name, z in (("target", target), ("online", online), ("projection", projection)):
        for suffix, centred in (("", False), ("_centred", True)):
            expected = effective_rank(z.flatten(0, 1), centred=centred)
            assert found[f"rank_{name}{suffix}"] == pytest.approx(expected)
    assert found["rank_margin"] == pytest.approx(found["rank_target"] - found["rank_projection"])
    assert len(found["channel_std_online"]) == 8
    error = x_pred - batch.images
    assert found["reconstruction_error"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    psnr = 10 * (4 / error.square().mean((1, 2, 3))).log10()
    assert found["psnr"] == pytest.approx(float(psnr.mean()), rel=1e-5)
    assert found == method.diagnose(batch)  # a function of weights and batch alone


def test_what_a_velocity_network_projects_is_its_velocity_plus_the_noise(batch):
    method = make_case("decoupled")
    with torch.no_grad():
        z0 = method.network.encode(batch.images)
        t = batch.draws.normal("t", 1, 1).sigmoid()
        eps = batch.draws.normal("eps", 16, 8)
        h, _ = method.network.denoise(t * z0 + (1 - t) * eps)
        projection = method.network.predict_velocity(h, t.flatten(), batch.labels) + eps
    expected = effective_rank(projection.flatten(0, 1), centred=False)
    assert method.diagnose(batch)["rank_projection"] == pytest.approx(expected)


def test_decoding_an_encoded_image_is_a_second_pass_without_noise(batch):
    method = make()
    z0 = method.encode(batch.images)
    assert z0.shape == (N, *method.noise_shape())
    expected = method.average.decode(method.average.denoise(z0)[0])
    torch.testing.assert_close(method.decode(z0), expected)
