"""EDM's geometric augmentation, of which networks are told (arXiv:2206.00364v2, App. F.2, Table 6).

A network that is told how an image was augmented, and told "not at all" when it samples, learns
from augmented images without ever making one: the augmentation does not leak. An image is mirrored,
left to right and top to bottom, and then scaled, rotated, stretched and moved by one resampling:

    out(q) = image(R(w) / s  R(-r) diag(1/a, a) R(r)  (q - d))     q, d from the centre, in pixels

R(w) = ((cos w, -sin w), (sin w, cos w)), x to the right and y down: the image turns
counterclockwise. Order, signs and labels are those of the public code, or its networks would be
told something else; these leave open whether a direction is stretched or squeezed.
Beyond the border lies the mirror image, as far as the image is wide or high, and then gray. The
image is doubled and halved by the wavelet sym6 around bilinear interpolation, as in StyleGAN2's
adaptive augmentation (Karras et al., arXiv:2006.06676).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from selfdistill.data.augment_config import AugmentConfig
from selfdistill.draws import Draws

# Low-pass of the wavelet sym6 (Daubechies, "Ten Lectures on Wavelets", 1992, Sec. 8.1.1).
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_CENTRE = 5  # the tap that stands on a position itself
_SMALLEST = 7  # pixels of a side, whose mirror images are as long as a filter reaches


class Transformations(NamedTuple):
    """What is done to N images; 0 is nothing.

    Attributes:
        flips: Whether they are mirrored left to right, and top to bottom, (N, 2), bool.
        scale: log2 of the scale, in its deviations, (N,).
        angle: By which they turn counterclockwise, in radians, (N,).
        stretch: log2 of the stretch, in its deviations, (N,).
        direction: Of the stretch, from the x axis counterclockwise, in radians, (N,).
        shift: To the right and down, in its deviations, (N, 2).
    """

    flips: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    shift: Tensor

    @property
    def labels(self) -> Tensor:
        """What a network is told, (N, 9), float32."""
        parts = (
            self.flips[:, 0],
            self.flips[:, 1],
            self.scale,
            self.angle.cos() - 1,
            self.angle.sin(),
            self.stretch * self.direction.cos(),
            self.stretch * self.direction.sin(),
            self.shift[:, 0],
            self.shift[:, 1],
        )
        return torch.stack([part.float() for part in parts], dim=1)


def augment_if(
    x: Tensor, draws: Draws, name: str, config: AugmentConfig | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return images, augmented if a row says how, and what a network is told beside the others.

    Args:
        x: Images, (N, C, H, W), float32.
        draws: As `augment` takes them.
        name: As `augment` takes it.
        config: None: the row augments nothing.

    Returns:
        (N, C, H, W), and the labels, (N, 9), alone in a tuple, or an empty one.
    """
    if config is None:
        return x, ()
    x, told = augment(x, draws, name, config)
    return x, (told,)


@torch.no_grad()
def augment(x: Tensor, draws: Draws, name: str, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Augment images, each for itself; no gradient goes through.

    Args:
        x: Images in [-1, 1], (N, C, H, W), float32; 7 pixels and more a side.
        draws: Random numbers of the N images, on their device.
        name: What is augmented; another name is an independent augmentation.
        config: Probability and strengths.

    Returns:
        The images, (N, C, H, W), float32, which may overshoot [-1, 1] a little, and those that
        nothing was done to as they were; and the labels, (N, 9), zeros for these.

    Raises:
        ValueError: If a side is too short for the filter's reflected border.
    """
    if min(x.shape[2:]) < _SMALLEST:
        raise ValueError(
            f"images of {x.shape[2]} x {x.shape[3]} pixels are too small to be augmented: a side "
            f"needs {_SMALLEST}; take larger images, or leave `augment` out"
        )
    drawn = draw(draws, name, config)
    return transform(x, drawn, config), drawn.labels


def draw(draws: Draws, name: str, config: AugmentConfig) -> Transformations:
    """Return what is to be done to N images.

    Args:
        draws: Random numbers of the N images.
        name: Their streams' names begin with it.
        config: Probability and strengths.
    """
    chosen = draws.bernoulli(f"{name}_chosen", config.probability, 6)  # (N, 6)
    if config.always_mirrors and config.probability:
        chosen[:, 0] = True
    normals = draws.normal(f"{name}_normals", 4)
    angles = math.pi * (2 * draws.uniform(f"{name}_angles", 2) - 1)
    oriented = draws.bernoulli(f"{name}_oriented", config.oriented_share)
    return Transformations(
        flips=chosen[:, :2] & draws.bernoulli(f"{name}_flips", 0.5, 2),
        scale=normals[:, 0].where(chosen[:, 2], 0),
        angle=angles[:, 0].where(chosen[:, 3], 0),
        stretch=normals[:, 1].where(chosen[:, 4], 0),
        direction=angles[:, 1].where(oriented, 0),
        shift=normals[:, 2:].where(chosen[:, 5:], 0),
    )


def transform(x: Tensor, drawn: Transformations, config: AugmentConfig) -> Tensor:
    """Return transformed images, (N, C, H, W).

    Every number of an image is made by sums of its own, in one order whatever the batch; there are
    no products of matrices of float32, which a GPU may round to TF32.

    Args:
        x: Images, (N, C, H, W), float32.
        drawn: What is done to each.
        config: What the deviations are.
    """
    x_flip, y_flip = drawn.flips.view(-1, 2, 1, 1, 1).unbind(dim=1)
    x = torch.where(x_flip, x.flip(3), x)
    x = torch.where(y_flip, x.flip(2), x)
    size = x.shape[2:]
    beyond = [side - 1 for side in size]  # EDM pads by what the batch needs, up to this
    padded = F.pad(x, (beyond[1], beyond[1], beyond[0], beyond[0]), mode="reflect")
    doubled = _doubled(_doubled(padded).mT).mT
    grid = _grid(drawn, config, size)
    found = F.grid_sample(doubled, grid, "bilinear", "zeros", align_corners=False)
    resampled = _halved(_halved(found).mT).mT
    moves = torch.stack((drawn.scale, drawn.angle, drawn.stretch, *drawn.shift.unbind(dim=1)))
    return torch.where((moves != 0).any(dim=0).view(-1, 1, 1, 1), resampled, x)


def _grid(drawn: Transformations, config: AugmentConfig, size: torch.Size) -> Tensor:
    """Return where the values of a doubled output come from in the doubled, padded image.

    Args:
        drawn: What is done to N images.
        config: What the deviations are.
        size: (H, W).

    Returns:
        (N, 2 H + 10, 2 W + 10, 2), as `grid_sample` takes it: x and y, the image is [-1, 1].
    """
    height, width = size
    scale = (config.scale_deviation * drawn.scale.double()).exp2()
    stretch = (config.stretch_deviation * drawn.stretch.double()).exp2()
    angle, direction = drawn.angle.double(), drawn.direction.double()
    inner = torch.diag_embed(torch.stack((1 / stretch, stretch), dim=1))
    inner = _rotation(-direction) @ inner @ _rotation(direction)
    matrix = (_rotation(angle) @ inner / scale.view(-1, 1, 1)).float()
    shift = config.translation_deviation * drawn.shift
    y, x = (_places(side, shift.device) for side in size)
    x = (x - width * shift[:, :1])[:, None, :]  # (N, 1, 2 W + 10)
    y = (y - height * shift[:, 1:])[:, :, None]  # (N, 2 H + 10, 1)
    entries = matrix.view(-1, 4, 1, 1).unbind(dim=1)
    x, y = entries[0] * x + entries[1] * y, entries[2] * x + entries[3] * y
    # A doubled image has a position at each pixel's centre, and one half a pixel after it.
    return torch.stack(((4 * x - 1) / (6 * width - 4), (4 * y - 1) / (6 * height - 4)), dim=3)


def _places(side: int, device: torch.device) -> Tensor:
    """Return the places of a doubled output's positions, pixels from the centre."""
    num = 2 * side + len(_SYM6) - 2
    return (torch.arange(num, device=device) - _CENTRE - (side - 1)) / 2


def _rotation(angle: Tensor) -> Tensor:
    """Return R of angles (N,), (N, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), dim=1).view(-1, 2, 2)


def _doubled(x: Tensor) -> Tensor:
    """Return (..., 2 L) of (..., L): x with zeros in between, filtered by sym6."""
    half, length = len(_SYM6) // 2, x.shape[-1]
    x = F.pad(x, (half // 2, half // 2))
    # Positions of x, and those between them, each see every other tap.
    even = [(_SYM6[2 * j + 1], x.narrow(-1, half - 1 - j, length)) for j in range(half)]
    odd = [(_SYM6[2 * j], x.narrow(-1, half - j, length)) for j in range(half)]
    return torch.stack((_sum(even), _sum(odd)), dim=-1).flatten(-2)


def _halved(x: Tensor) -> Tensor:
    """Return (..., L) of (..., 2 L + 10), filtered by sym6: what `_doubled` began with."""
    last = x.shape[-1] - len(_SYM6) + 1
    return _sum([(tap, x[..., k : k + last : 2]) for k, tap in enumerate(_SYM6)])


def _sum(terms: list[tuple[float, Tensor]]) -> Tensor:
    """Return the sum of products, term by term in their order."""
    total = torch.zeros_like(terms[0][1])
    for weight, values in terms:
        total = total + weight * values
    return total
