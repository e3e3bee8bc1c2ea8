"""The diffusion path of DSD's one ViT: what leads from noised latents to a prediction.

    z_t -> tokens -> blocks -> norm -> DiT layer, told t and y -> velocity, or clean latent

A copy of it can be trained as a network of its own: the ViT's blocks encode and decode too, and
moving them would move the latents and the images.
"""

import copy

import torch
from torch import Tensor, nn

from selfdistill.networks.dsd_vit import DenoisingParts, DSDViT, OutputLayer, normalize_latent


class DiffusionPath(DenoisingParts):
    """Copies of the parts of a DSD ViT that denoise; named as there.

    It is asked as a SiT is, and gives the same bits as the ViT.

    Args:
        network: The ViT.
        predicts_clean: Whether the head is that of clean latents, by which the ViT itself learned,
            or that of velocities, by which it samples.

    Attributes:
        predicts_clean: As given.
    """

    def __init__(self, network: DSDViT, *, predicts_clean: bool = False) -> None:
        super().__init__(network)
        self.predicts_clean = predicts_clean
        self.latent_in = copy.deepcopy(network.latent_in)
        self.registers = copy.deepcopy(network.registers)
        self.blocks = copy.deepcopy(network.blocks)
        self.norm = copy.deepcopy(network.norm)
        self._head = "z0_out" if predicts_clean else "velocity_out"
        self.add_module(self._head, copy.deepcopy(getattr(network, self._head)))

    @property
    def output(self) -> OutputLayer:
        """The head."""
        head = getattr(self, self._head)
        assert isinstance(head, OutputLayer)
        return head

    def layers(self) -> list[nn.Module]:
        """Return the transformer layers: what is worth compiling, and recomputing for memory."""
        return [*self.blocks, self.dit_layer]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights that map hidden features to hidden features, each (out, in)."""
        inner = [self.blocks, self.dit_layer, self.time_embedding, self.output.modulation]
        return [p for module in inner for p in module.parameters() if p.ndim == 2]

    def tokens(self, z_t: Tensor) -> Tensor:
        """Return registers and the tokens of noised latents (N, L, C), (N, registers + L, D)."""
        tokens = self.latent_in(z_t)
        registers = self.registers.expand(len(tokens), -1, -1)
        return torch.cat((registers, tokens.float()), dim=1)

    def run_part(self, x: Tensor, condition: Tensor, first: int, last: int) -> Tensor:
        """Run layers `first` to `last` - 1; registers end before the DiT layer, the last one.

        Args:
            x: Tokens, (N, registers + L, D).
            condition: (N, D).
            first: From 0 on.
            last: At most the number of layers.

        Returns:
            Tokens, (N, registers + L, D), or behind the DiT layer (N, L, D).
        """
        skip, depth = self.config.num_registers, len(self.blocks)
        for block in self.blocks[first:last]:
            x = block(x, self.cos, self.sin)
        if first <= depth < last:
            x, _ = self.dit_layer(self.norm(x)[:, skip:], condition, *self.rotation)
        return x

    def last_tokens(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return what the head projects, (N, L, D), float32, of the DiT layer's tokens."""
        with torch.autocast(x.device.type, enabled=False):
            return self.output.modulated(x.float(), condition.float())

    def to_latents(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the velocity, or the clean latent, (N, L, C), float32."""
        with torch.autocast(x.device.type, enabled=False):
            z = self.output(x.float(), condition.float())
        return normalize_latent(z) if self._normalizes else z

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return the prediction.

        Args:
            z_t: Noised latents, (N, L, C).
            t: Flow times, (N,).
            labels: Classes in [0, K], K the null class, (N,).

        Returns:
            (N, L, C), float32.
        """
        condition = self.condition(t, labels)
        x = self.run_part(self.tokens(z_t), condition, 0, len(self.layers()))
        return self.to_latents(x, condition)

    @property
    def _normalizes(self) -> bool:
        return self.predicts_clean and self.config.normalize_latent
