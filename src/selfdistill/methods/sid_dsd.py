"""SiD and SiDA of DSD's ViT, in its own latents.

Generator, fake-score network and teacher are copies of the ViT's diffusion path alone. The ViT
stays as it is beside them: it encodes the real images and decodes the generated latents.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.methods.sid_adapted import AdaptedSiD
from selfdistill.methods.sid_config import SiDConfig
from selfdistill.networks.adapted import AdaptedDenoiser
from selfdistill.networks.dsd_path import DiffusionPath
from selfdistill.networks.dsd_vit import DSDViT


class OneStep(nn.Module):
    """A one-step generator of latents, and the ViT whose latents they are."""

    def __init__(self, vit: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.vit, self.generator = vit, generator


class DSDSiD(AdaptedSiD):
    """SiD between copies of a ViT's diffusion path.

    Args:
        network: The ViT, trained; perhaps with a velocity head that SSD tuned.
        config: The objective.
        weights: As SiD's.
        teacher: The ViT that is learned from, of the same latents; None: `network`.
    """

    def __init__(
        self,
        network: DSDViT,
        config: SiDConfig,
        weights: object = None,
        teacher: DSDViT | None = None,
    ) -> None:
        taught = None if teacher is None else DiffusionPath(teacher)
        super().__init__(DiffusionPath(network), config, weights, taught)
        if self.teacher is not None and config.teacher_head == "clean":
            clean = AdaptedDenoiser(DiffusionPath(teacher or network, predicts_clean=True), None)
            self.teacher = clean.requires_grad_(False).eval()
        self.trunk = network.requires_grad_(False)

    def see(self, x_t: Tensor) -> Tensor:
        """Return noised latents as they are: the generator has blocks of its own."""
        return x_t

    @torch.no_grad()
    def sample(self, eps: Tensor, labels: Tensor, solver: SolverConfig, draws: Draws) -> Tensor:
        """Return images, which the ViT decodes, (N, 3, H, W)."""
        z0 = self.generate(eps, labels, solver, draws)
        return self.trunk.decode(self.trunk.denoise(z0)[0])

    def released(self) -> OneStep:
        """Return the averaged generator and the ViT: one cannot stand for the other."""
        return OneStep(self.trunk, self.average.network)

    @classmethod
    def of_released(cls, network: Any, config: Any, state: Mapping[str, Tensor]) -> Self:
        """Return the method that only samples, as `Method.of_released`."""
        method = cls(network, config)
        OneStep(method.trunk, method.average.network).load_state_dict(state)
        return method
