"""The contract between a paper's training algorithm and the one training loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from selfdistill.data.loader import Batch
from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws

Losses = dict[str, Tensor]
"""Weighted loss terms by name, (N,) each: their sum is what is minimised."""
LossFn = Callable[[Batch], Losses]


class Method(nn.Module, ABC):
    """One training algorithm: the networks it owns, their losses, and how to sample."""

    @abstractmethod
    def turns(self) -> dict[str, LossFn]:
        """Return the loss of each trained network, in the order of the updates.

        The name is that of the attribute that holds the network; parameters of it that do not
        require a gradient when the training starts stay as they are. A loss returns named terms
        per sample, already weighted; the loop sums, averages and logs them.
        """

    def before_step(self, nimg: int) -> None:
        """Take note of how far the training is, before each step of it.

        Args:
            nimg: Images seen so far.
        """

    def rests(self, name: str) -> bool:
        """Return whether a turn is left out for now, and its network stays as it is.

        Args:
            name: Of the turn.
        """
        return False

    def clean_gradients(self, name: str, gradients: list[Tensor]) -> Tensor | None:
        """Mend the gradients of a turn in place, before its update.

        Args:
            name: Of the turn.
            gradients: What this rank holds of them.

        Returns:
            How many of the elements were not finite, (), int64; None: they are left as they are,
            and such a step is skipped.
        """
        return None

    @abstractmethod
    def after_step(self, nimg: int, batch_size: int) -> None:
        """Update whatever is not trained by gradient, e.g. averaged copies of the weights.

        Args:
            nimg: Images seen, this step's included.
            batch_size: Images a step.
        """

    def name_classes(self, names: Sequence[str] | None) -> None:
        """Say what the labels mean, to networks that read it, before any of them is asked.

        Args:
            names: Names of the data's classes, by label; None: what only counts needs none.

        Raises:
            FileNotFoundError, ValueError: If what reads the names cannot be had, or does not fit.
        """

    def take_guide(self, network: nn.Module) -> None:
        """Let another network say what is guided away from, before anything is sampled.

        Args:
            network: Of the same latents and noise; asked without class.

        Raises:
            ValueError: If it is of others, or the method knows no guidance.
        """
        raise ValueError(f"{type(self).__name__} is guided by its own network alone")

    def diagnose(self, batch: Batch) -> dict[str, Any]:
        """Return what tells a healthy training from a sick one, beyond its losses, as JSON values.

        Args:
            batch: The same images, with the same draws, at every call of a training.
        """
        return {}

    @property
    def transient(self) -> tuple[str, ...]:
        """Names of the networks that only training needs: a finished checkpoint is without them."""
        return ()

    def kept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what of the method's state a finished checkpoint keeps."""
        transient = self.transient
        return {
            name: value for name, value in state.items() if name.partition(".")[0] not in transient
        }

    @abstractmethod
    def released(self) -> nn.Module:
        """Return the network that samples: what another row may start from."""

    @classmethod
    def of_released(cls, network: nn.Module, config: Any, state: Mapping[str, Tensor]) -> Self:
        """Return the method that only samples, with the weights of what `released` gave.

        Args:
            network: As built.
            config: The objective.
            state: The released network's.
        """
        network.load_state_dict(state)
        made: Any = cls
        return made(network, config)

    @abstractmethod
    def data_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample of the data: an image's, (3, H, W), or its latents'."""

    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample's noise."""

    @abstractmethod
    def sample(self, eps: Tensor, labels: Tensor, solver: SolverConfig, draws: Draws) -> Tensor:
        """Turn noise into what the data are.

        Args:
            eps: Standard normal noise, (N, *noise_shape()).
            labels: Class indices, (N,).
            solver: Solver, times and guidance.
            draws: Of these samples, for solvers that draw noise on the way.

        Returns:
            Images, about [-1, 1], or latents of a VAE, (N, *data_shape()).
        """


class Autoencoder(Method):
    """A method whose latents are its own."""

    @abstractmethod
    def encode(self, x0: Tensor) -> Tensor:
        """Return clean latents (N, *noise_shape()) of images in [-1, 1], (N, 3, H, W)."""

    @abstractmethod
    def decode(self, z0: Tensor) -> Tensor:
        """Return images, about [-1, 1], (N, 3, H, W), of clean latents (N, *noise_shape())."""
