"""Progressive distillation (Salimans and Ho, arXiv:2202.00512, Algorithm 2): half the steps.

The frozen network takes two steps of its grid, from time s over the next to t. The student learns
the prediction that leads from s to t in one.
"""

import torch
from torch import Tensor, nn

from selfdistill.data.loader import Batch
from selfdistill.diffusion.process import as_times
from selfdistill.methods.latent_method import Tuned
from selfdistill.methods.losses import squared_error
from selfdistill.methods.method import Losses
from selfdistill.methods.progressive_config import ProgressiveConfig


class Progressive(Tuned):
    """The network, and the frozen copy that it starts as.

    Args:
        network: A DiT or SiT, or DSD's ViT, trained.
        config: The objective.
        weights: None is needed; None in its place: a method that only samples.
    """

    def __init__(
        self, network: nn.Module, config: ProgressiveConfig, weights: object | None = None
    ) -> None:
        super().__init__(network, keep_frozen=weights is not None)
        self.config = config
        self._times = [*self.process.times(config.grid), self.process.end]

    def loss(self, batch: Batch) -> Losses:
        """Return the weighted squared distance from the teacher's two steps, (N,).

        Args:
            batch: Images or latents (N, *data_shape()), labels (N,).
        """
        number = batch.draws.integers("step", self.config.grid.num_times // 2, 1).squeeze(1)
        self.seed_layers(batch.draws, "network")
        times = as_times(self._times, number.device)
        s, middle, t = (times[2 * number + k] for k in range(3))
        labels = self.drop_labels(batch, self.config.class_dropout)
        x_s = self.process.noised(self.clean(batch), self.draw_noise(batch.draws), s)
        with torch.no_grad():
            seen = self.see(x_s)
            x = self.process.step(x_s, self._teach(seen, s, labels), s, middle)
            x_t = self.process.step(x, self._teach(self.see(x), middle, labels), middle, t)
            target = self.process.joining(x_s, x_t, s, t)
        prediction = self.only_prediction(self.network(seen, s, labels))
        error = squared_error(prediction, target)
        if self.config.weighting == "truncated_snr":
            error = error * self.process.larger_error(s)
        return {"distillation": error}

    def _teach(self, seen: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.only_prediction(self.frozen(seen, t, labels))
