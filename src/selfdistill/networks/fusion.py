"""Where a pass through a transformer block is recorded, and mixed into another pass.

Implicit self-distillation (iSSD; Ma et al., CVPR 2025, Eq. 6) holds a student's pass at one time
back towards the frozen network's pass at the time before.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from selfdistill.networks.modulation import modulate

Site = Literal["branch", "gated", "block"]
"""What of a block is mixed: outputs of attention and MLP before their gates, after them, or the
residual stream at its end."""

Recorded = tuple[Tensor, ...]
"""What stood at the site in one block, (N, ...) each."""


class Fusion(NamedTuple):
    """What another pass has left, to be mixed into this one: mu recorded + (1 - mu) own.

    Attributes:
        site: Where.
        weight: mu, in [0, 1]; or one for each sample, (N,).
        recorded: By block, what that pass left.
    """

    site: Site
    weight: float | Tensor
    recorded: Sequence[Recorded]


class Places:
    """Goes through a block's places in order: records each, or mixes what belongs there."""

    def __init__(
        self, site: Site | None, weight: float | Tensor = 0.0, recorded: Recorded = ()
    ) -> None:
        self.site, self._weight, self._recorded = site, weight, iter(recorded)
        self.found: list[Tensor] = []

    def pass_through(self, site: Site, x: Tensor) -> Tensor:
        """Return what goes on from a place where x stands."""
        if site != self.site:
            return x
        other = next(self._recorded, None)
        if other is None:
            self.found.append(x)
            return x
        weight = self._weight
        if isinstance(weight, Tensor):
            weight = weight.view(-1, *[1] * (x.ndim - 1))
        return weight * other + (1 - weight) * x


def run_branches(
    x: Tensor,
    modulation: Tensor,
    branches: Iterable[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]],
    places: Places,
) -> tuple[Tensor, Recorded]:
    """Add modulated branches to the residual stream of a block, adaLN-zero (arXiv:2212.09748).

    Args:
        x: Tokens, (N, L, D).
        modulation: Shift, scale and gate of each branch in turn, (N, 3 D) each, joined.
        branches: Norm and layer of each, (N, L, D) -> (N, L, D).
        places: What is recorded, and mixed.

    Returns:
        Tokens, (N, L, D), and what stood at the site, mixed.
    """
    vectors = iter(modulation.split(x.shape[-1], dim=-1))
    for norm, layer in branches:
        shift, scale, gate = (next(vectors) for _ in range(3))
        branch = places.pass_through("branch", layer(modulate(norm(x), shift, scale)))
        x = x + places.pass_through("gated", gate[:, None] * branch)
    return places.pass_through("block", x), tuple(places.found)
