"""SiD and SiDA of a DiT or a SiT: the networks are asked as EDM's are (`networks.adapted`)."""

from typing import Any

from torch import Tensor, nn

from selfdistill.data.loader import Batch
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

    def diagnose(self, batch: Batch) -> dict[str, Any]:
        """Return SiD's, and the standard deviation of real data: `data_deviation` should be near.

        Args:
            batch: As SiD's.
        """
        return {**super().diagnose(batch), "data_deviation": float(self.clean(batch).std())}

    def released(self) -> nn.Module:
        """Return the averaged generator, as the network that it is."""
        return self.average.network
