import torch

from selfdistill.diffusion import paths


def _state():
    generator = torch.Generator().manual_seed(0)
    z0, eps = (torch.randn(4, 6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(4, 1, 1, generator=generator, dtype=torch.float64)
    return z0, eps, t


def test_time_0_is_noise_and_time_1_is_data():
    z0, eps, _ = _state()
    assert torch.equal(paths.interpolate(z0, eps, torch.zeros(4, 1, 1)), eps)
    assert torch.equal(paths.interpolate(z0, eps, torch.ones(4, 1, 1)), z0)


def test_velocity_is_the_time_derivative_of_the_path():
    z0, eps, t = _state()
    h = 1e-6
    difference = paths.interpolate(z0, eps, t + h) - paths.interpolate(z0, eps, t - h)
    torch.testing.assert_close(difference / (2 * h), paths.velocity(z0, eps), rtol=0, atol=1e-9)


def test_velocity_and_clean_latent_are_inverse_readings():
    z0, eps, t = _state()
    z_t = paths.interpolate(z0, eps, t)
    v = paths.velocity(z0, eps)
    torch.testing.assert_close(paths.z0_from_velocity(z_t, v, t), z0)
    torch.testing.assert_close(paths.velocity_from_z0(z_t, z0, t), v)


def test_weighted_clean_latent_loss_equals_the_velocity_loss():
    """DSD Eq. 9 = Eq. 12 in value: |v - (z0 - eps)|^2 = |z0_pred - z0|^2 / (1 - t)^2."""
    z0, eps, t = _state()
    z_t = paths.interpolate(z0, eps, t)
    v_pred = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1), dtype=z0.dtype)
    z0_pred = paths.z0_from_velocity(z_t, v_pred, t)
    velocity_loss = (v_pred - paths.velocity(z0, eps)).square()
    latent_loss = (z0_pred - z0).square() / (1 - t) ** 2
    torch.testing.assert_close(velocity_loss, latent_loss)
