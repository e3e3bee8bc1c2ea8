"""What methods have in common whose network only samples: DiT, SiT, and DSD's velocity head."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.loader import Batch
from selfdistill.diffusion.config import SolverConfig
from selfdistill.diffusion.guidance import drop_labels, guide
from selfdistill.diffusion.process import PROCESSES, Process, as_times
from selfdistill.draws import Draws
from selfdistill.methods.method import Losses, LossFn, Method


class LatentMethod(Method):
    """A network that samples latents, and what surrounds it.

    DiT and SiT are trained whole, on the latents of a VAE. Of DSD's one ViT only a copy of the
    velocity head is trained: the ViT is encoder and decoder too, and moving it would move the
    latents and the images. It stays as it is, beside the head.

    Args:
        network: A DiT, SiT or U-Net, or DSD's ViT.

    Attributes:
        network: What is trained and asked: a DiT, a SiT, or the head.
        trunk: DSD's ViT, frozen; None: there is none.
        process: Its noise, and what it predicts.
        guide: Another network, asked without class in the place of this one; None: there is none.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        head = getattr(network, "velocity_head", None)
        asked: Any = network if head is None else head()
        self.network = asked
        self.trunk: Any = None if head is None else network.requires_grad_(False)
        self.process: Process = PROCESSES[asked.process]
        self.guide: Any = None
        unused: Any = getattr(asked, "logvar_linear", None)  # EDM2's; who trains it says so
        if unused is not None:
            unused.requires_grad_(False)

    def name_classes(self, names: Sequence[str] | None) -> None:
        """Give the names to a network that reads prompts, which its copies share."""
        if self._prompts is not None:
            self._prompts.take(names)

    def take_guide(self, network: nn.Module) -> None:
        """Let another network of the same latents and noise say what is guided away from."""
        ours, theirs = (
            tuple(getattr(one, name, None) for name in ("process", "noise_shape", "null_class"))
            for one in (self.network, network)
        )
        if ours != theirs:
            raise ValueError(f"guide: {theirs} does not fit the row's network, {ours}")
        self.guide = network

    @property
    def _prompts(self) -> Any:
        """What a network that reads prompts knows of them; None: it does not read."""
        return getattr(self.network, "prompts", None)

    def noise_shape(self) -> tuple[int, ...]:
        """Return (C, h, w) of a VAE's latents, or (L, C) of DSD's."""
        return self.network.noise_shape

    def data_shape(self) -> tuple[int, ...]:
        """Return the shape of an image for DSD's ViT, and of latents otherwise."""
        if self.trunk is None:
            return self.noise_shape()
        return 3, self.trunk.config.resolution, self.trunk.config.resolution

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """Return the clean latents of a batch, (N, *noise_shape())."""
        return batch.images if self.trunk is None else self.trunk.encode(batch.images)

    @torch.no_grad()
    def see(self, x_t: Tensor) -> Tensor:
        """Return what the network is shown of noised latents: these, or the ViT's features."""
        return x_t if self.trunk is None else self.trunk.denoise(x_t)[0]

    def only_prediction(self, output: Tensor) -> Tensor:
        """Leave out what a network says of its variance, (N, ...) -> (N, *noise_shape())."""
        return output[:, : self.noise_shape()[0]]

    def turns(self) -> dict[str, LossFn]:
        """Return the one loss of the one network."""
        return {"network": self.loss}

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """Return the weighted terms of the objective, (N,) each.

        Args:
            batch: Images or latents (N, *data_shape()), labels (N,).
        """

    def draw_noise(self, draws: Draws) -> Tensor:
        """Return standard normal noise, (N, *noise_shape())."""
        return draws.normal("eps", *self.noise_shape())

    def drop_labels(self, batch: Batch, probability: float) -> Tensor:
        """Return the labels (N,) of a batch, a share of them replaced by the null class.

        For a network that reads prompts: the numbers of one prompt each, drawn from its class's.
        """
        labels = batch.labels
        if self._prompts is not None:
            labels = self._prompts.draw(labels, batch.draws)
        return drop_labels(labels, batch.draws, probability, self.network.null_class)

    def seed_layers(self, draws: Draws, name: str) -> None:
        """Let what layers drop in a pass be drawn for its images, if they drop anything."""
        config: Any = getattr(self.network, "config", None)
        if getattr(config, "dropout", 0):
            draws.seed_layers(name)

    def released(self) -> nn.Module:
        """Return the network that samples; of a head, the whole ViT with it."""
        return self._whole(self.network)

    def network_at(self, t: float) -> nn.Module:
        """Return the network that samples at a time."""
        return self.network

    @torch.no_grad()
    def generate(
        self,
        eps: Tensor,
        labels: Tensor,
        solver: SolverConfig,
        draws: Draws,
        network_at: Callable[[float], nn.Module] | None = None,
    ) -> Tensor:
        """Turn noise into clean latents.

        Args:
            eps: Standard normal noise, (N, *noise_shape()).
            labels: Class indices, (N,).
            solver: Solver, times and guidance.
            draws: Of these samples, for stochastic solvers.
            network_at: Which network is asked; None: `self.network_at`.

        Returns:
            (N, *noise_shape()).
        """
        choose = network_at or self.network_at
        if self._prompts is not None:
            labels = self._prompts.first(labels)
        null = torch.full_like(labels, self.network.null_class)

        def predict(x_t: Tensor, t: float) -> Tensor:
            network, seen = choose(t), self.see(x_t)
            time = as_times([t], x_t.device).expand(len(x_t))
            output: Tensor = network(seen, time, labels)
            prediction = self.only_prediction(output)
            if solver.guides_at(self.process.flow_time(t)):
                free = self.only_prediction((self.guide or network)(seen, time, null))
                prediction = guide(prediction, free, solver.guidance, solver.guided_channels)
            if solver.solver == "ddpm":
                return torch.cat((prediction, output[:, prediction.shape[1] :]), dim=1)
            return prediction

        return self.process.solve(predict, eps, solver, draws)

    def _whole(self, network: Any) -> nn.Module:
        return network if self.trunk is None else self.trunk.with_head(network)

    @torch.no_grad()
    def sample(self, eps: Tensor, labels: Tensor, solver: SolverConfig, draws: Draws) -> Tensor:
        """Return images of DSD's latents, and latents of a VAE as they are."""
        z0 = self.generate(eps, labels, solver, draws)
        return z0 if self.trunk is None else self.trunk.decode(self.see(z0))


class Tuned(LatentMethod):
    """A network that learns from the frozen copy that it starts as; there is no average.

    Args:
        network: A DiT or SiT, or DSD's ViT, trained.
        keep_frozen: Whether there is a frozen copy: for training, or because it samples too.

    Attributes:
        frozen: The copy; None: there is none.
    """

    def __init__(self, network: nn.Module, *, keep_frozen: bool) -> None:
        super().__init__(network)
        self.frozen: Any = None
        if keep_frozen:
            self.frozen = copy.deepcopy(self.network).requires_grad_(False).eval()

    @property
    def transient(self) -> tuple[str, ...]:
        """The frozen copy."""
        return ("frozen",)

    def after_step(self, nimg: int, batch_size: int) -> None:
        """Do nothing."""
