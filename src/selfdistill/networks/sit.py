"""SiT (Ma et al., arXiv:2401.08740) and REPA's SiT (Yu et al., arXiv:2410.06940).

DiT's transformer, which predicts a velocity of the linear path at a continuous time. Attributes are
named as in the published weights. SiT's own time is this project's: 0 is noise, 1 is data; REPA's
runs the other way, and its velocity too (`SiTConfig.noise_at`). Both are told the time as it is, in
[0, 1], not scaled.
"""

from torch import Tensor, nn

from selfdistill.networks.dit import Transformer
from selfdistill.networks.dit_config import ProjectorConfig, SiTConfig


class Projector(nn.Sequential):
    """Three layers with SiLU from a block's tokens to a teacher's."""

    def __init__(self, width: int, config: ProjectorConfig, dim: int) -> None:
        super().__init__(
            nn.Linear(width, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            nn.Linear(config.width, dim),
        )


class SiT(Transformer):
    """Velocity z0 - eps of latents at a flow time: t in [0, 1], 0 is noise; (N, C, h, w)."""

    process = "linear_path"
    config: SiTConfig

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        if config.projectors is not None:
            self.projectors = nn.ModuleList(
                Projector(config.width, config.projectors, dim) for dim in config.projectors.dims
            )
            self.projectors.requires_grad_(False)  # ranks must not wait for their gradient
        self.reset_parameters()

    def project(self, z_t: Tensor, t: Tensor, labels: Tensor) -> list[Tensor]:
        """Return what each projector makes of its block's tokens, (N, L, dim) each.

        Raises:
            ValueError: If the network has no projectors.
        """
        if self.config.projectors is None:
            raise ValueError("this SiT has no projectors: give its configuration some")
        x, _ = self.run_blocks(
            self.tokens(z_t), self.condition(t, labels), num_blocks=self.config.projectors.block
        )
        return [projector(x) for projector in self.projectors]

    def condition(self, t: Tensor, labels: Tensor) -> Tensor:
        """Return what modulates the blocks, (N, D), of flow times (N,) and labels (N,)."""
        return super().condition(1 - t if self.config.noise_at == 1 else t, labels)

    def to_latents(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, (N, C, h, w), float32."""
        v = super().to_latents(x, condition)[:, : self.config.latent_channels]
        return -v if self.config.noise_at == 1 else v
