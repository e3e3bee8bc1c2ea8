"""SiD and SiDA of a DiT or a SiT: the networks are asked as EDM's are (`networks.adapted`)."""

from torch import Tensor, nn

from selfdistill.methods.sid import SiD
from selfdistill.methods.sid_config import SiDConfig
from selfdistill.networks.adapted import AdaptedDenoiser


class AdaptedSiD(SiD):
    """SiD whose networks predict noise or velocities.

    Args:
        network: The teacher.
        config: The objective; an adversary says where the fake-score network judges.
        weights: As SiD's.
        teacher: As SiD's.
    """

    def __init__(
        self,
        network: nn.Module,
        config: SiDConfig,
        weights: object = None,
        teacher: nn.Module | None = None,
    ) -> None:
        tap = None if config.adversary is None else config.adversary.tap
        taught = None if teacher is None else AdaptedDenoiser(teacher, tap)
        super().__init__(AdaptedDenoiser(network, tap), config, weights, taught)

    def known_level(self, sigma: Tensor) -> Tensor:
        """Return the noise levels that the networks know next to drawn ones, (N,)."""
        return self.network.nearest_level(sigma)

    def released(self) -> nn.Module:
        """Return the averaged generator, as the network that it is."""
        return self.average.network
