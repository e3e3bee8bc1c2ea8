"""Networks of other processes as denoisers of noise levels, which SiD's formulas are of.

    D(x; sigma) = E[x0 | x],    x = x0 + sigma eps

A DiT's noise or a SiT's velocity says as much: its state at the time of that level is scale x, and
the clean data follow from what it predicts there (`Process.at_level` and `clean`). There is no
preconditioning beside. Like EDM's networks, these judge without a parameter of their own, by
features of a block or of the end (`TapConfig`).
"""

from typing import Literal, Protocol, cast

from torch import Tensor, nn

from selfdistill.base_config import Config
from selfdistill.diffusion.process import PROCESSES, ProcessName
from selfdistill.networks.tap_config import ChannelsTap, TapConfig


class Transformer(Protocol):
    """What is asked of a network: its pass in parts. x are tokens, (N, L', D), L' >= L."""

    config: Config
    process: ProcessName
    null_class: int
    noise_shape: tuple[int, ...]

    def tokens(self, z_t: Tensor) -> Tensor:
        """Return the first tokens of a state (N, *noise_shape); those of a grid come last."""

    def condition(self, t: Tensor, labels: Tensor) -> Tensor:
        """Return (N, D) of times and labels, (N,) each."""

    def run_part(self, x: Tensor, condition: Tensor, first: int, last: int) -> Tensor:
        """Return what blocks `first` to `last` - 1 make of tokens."""

    def last_tokens(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return what the output is projected from, (N, L, D), float32."""

    def to_latents(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the output, the prediction in front, float32."""

    def layers(self) -> list[nn.Module]:
        """Return the blocks."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights from hidden features to hidden features."""

    def __call__(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return the output of the whole pass."""


class AdaptedDenoiser(nn.Module):
    """A network that predicts noise, velocity or clean data, asked as EDM's are.

    Args:
        network: A DiT, a SiT, or DSD's diffusion path; it is taken over.
        tap: Where it judges; None: it does not.

    Attributes:
        network: As it is: what leaves a training is this.
        config: Its architecture.
    """

    process: Literal["noise_levels"] = "noise_levels"

    def __init__(self, network: nn.Module, tap: TapConfig | None) -> None:
        super().__init__()
        self.network = network
        self.config = self._asked.config
        self._tap = tap

    @property
    def null_class(self) -> int:
        """The label of no class."""
        return self._asked.null_class

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one sample's noise."""
        return self._asked.noise_shape

    def layers(self) -> list[nn.Module]:
        """Return the blocks: what is worth compiling, and recomputing for memory."""
        return self._asked.layers()

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights that map hidden features to hidden features, each (out, in)."""
        return self._asked.hidden_matrices()

    def nearest_level(self, sigma: Tensor) -> Tensor:
        """Return the noise levels that the network knows next to some, (N,).

        A DiT knows 1000, from 0.01 to 157: noise that it is to see has to be of one of them.
        """
        return PROCESSES[self._asked.process].at_level(sigma)[2]

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Return D, the clean data that noised data are expected to be.

        Args:
            x: Data with noise added, (N, *noise_shape).
            sigma: Noise levels, (N,); of a chain of discrete times the nearest one is told.
            labels: Classes in [0, K], K none, (N,).

        Returns:
            (N, *noise_shape), float32.
        """
        x_t, t = self._state(x, sigma)
        return self._clean(x_t, self._asked(x_t, t, labels), t)

    def denoise_and_judge(self, x: Tensor, sigma: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return D, and logits of being real, (N, 1, ...), of one pass; zeros without a tap."""
        network, last = self._asked, len(self.layers())
        x_t, t = self._state(x, sigma)
        condition, middle = network.condition(t, labels), self._middle
        tokens = network.run_part(network.tokens(x_t), condition, 0, middle)
        logits = (
            self._logits(tokens, condition) if self._tap is not None else x.new_zeros(len(x), 1)
        )
        tokens = network.run_part(tokens, condition, middle, last)
        return self._clean(x_t, network.to_latents(tokens, condition), t), logits

    def judge(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Return the logits alone: the pass ends at the tap.

        Raises:
            ValueError: If there is no tap.
        """
        if self._tap is None:
            raise ValueError("this network has no tap, so it does not judge")
        network = self._asked
        x_t, t = self._state(x, sigma)
        condition = network.condition(t, labels)
        tokens = network.run_part(network.tokens(x_t), condition, 0, self._middle)
        return self._logits(tokens, condition)

    @property
    def _asked(self) -> Transformer:
        return cast(Transformer, self.network)

    @property
    def _middle(self) -> int:
        """Blocks before the tap."""
        return self._tap.block if isinstance(self._tap, ChannelsTap) else len(self.layers())

    def _state(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's own state (N, ...) and times (N,) of noised data."""
        t, scale, _ = PROCESSES[self._asked.process].at_level(sigma)
        return scale.view(-1, *[1] * (x.ndim - 1)).to(x.dtype) * x, t

    def _clean(self, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        if getattr(self.network, "predicts_clean", False):
            return output
        prediction = output[:, : self.noise_shape[0]]  # what a DiT says of its variance is left out
        return PROCESSES[self._asked.process].clean(x_t, prediction, t)

    def _logits(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return the logits of tokens at the tap: (N, 1, h, w) of channels, (N, 1, D) of tokens."""
        if not isinstance(self._tap, ChannelsTap):
            return self._asked.last_tokens(tokens, condition).mean(dim=1, keepdim=True)
        grid = int(self.config.grid)  # type: ignore[attr-defined]
        return tokens[:, -(grid**2) :].float().mean(dim=2).unflatten(1, (1, grid, grid))
