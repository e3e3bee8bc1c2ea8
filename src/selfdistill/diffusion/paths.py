"""The linear path between noise and data. The only module that converts between predictions.

Flow time t lies in [0, 1]; **t = 0 is noise, t = 1 is clean data**, as in DSD (arXiv:2511.14716,
the velocity is z - eps) and in LightningDiT; SD3 and rectified-flow papers run the other way.

    z_t = t z0 + (1 - t) eps            v = dz_t/dt = z0 - eps

Every `t` here has shape (N, 1, ...), broadcastable to the tensors it stands beside.
"""

from torch import Tensor


def interpolate(z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return z_t = t z0 + (1 - t) eps    (DSD Eq. 1); all of one shape (N, ...)."""
    return t * z0 + (1 - t) * eps


def velocity(z0: Tensor, eps: Tensor) -> Tensor:
    """Return v = z0 - eps, the target of DSD Eq. 2, (N, ...)."""
    return z0 - eps


def z0_from_velocity(z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return z0 = z_t + (1 - t) v    (DSD Eq. 11), (N, ...)."""
    return z_t + (1 - t) * v


def velocity_from_z0(z_t: Tensor, z0: Tensor, t: Tensor) -> Tensor:
    """Return v = (z0 - z_t) / (1 - t)    (DSD Eq. 10), (N, ...); undefined at t = 1."""
    return (z0 - z_t) / (1 - t)
