"""The one ViT of DSD (arXiv:2511.14716v1, Sec. 3 and 4.1): encoder, decoder and diffusion model.

    encode:   x   -> patches -> ViT -> latent head -> z           (image in, clean latent out)
    denoise:  z_t -> tokens  -> ViT -> h                          (the same ViT, told no t, no y)
    from h:   DiT layer -> z0_pred and v_pred;   image head -> x  (t and y enter only the DiT layer)

What the paper leaves open follows from its parameter counts (42, 118 and 205 M): plain pre-norm
blocks with a 4x MLP, one DiT layer shared by two output layers, no adaLN elsewhere. Positions are
rotations as in DINOv3 (arXiv:2508.10104), queries and keys have unit variance, without parameters.
"""

import copy
import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.fusion import Fusion, Places, Recorded, Site, run_branches
from selfdistill.networks.modulation import modulate

_EPS = 1e-6


def normalize_latent(z: Tensor) -> Tensor:
    """Give each latent token mean 0 and variance 1 over its channels, (N, L, C) -> (N, L, C).

    The paper names no normalisation; without one the encoder drowns the noise by growing.
    """
    return F.layer_norm(z.float(), z.shape[-1:], eps=_EPS)


def _in_float32(tensor: Tensor) -> torch.autocast:
    """Leave autocast: what goes to pixels, latents and logits keeps float32."""
    return torch.autocast(tensor.device.type, enabled=False)


def rotary_table(grid: int, head_dim: int, base: float = 100.0) -> Tensor:
    """Return the angles of two-axis rotary positions, (grid^2, head_dim / 2), row-major tokens.

    Coordinates are patch centres in (-1, 1); the first half of the angles follows the row, the
    second the column, with periods from 1 to `base` (DINOv3).
    """
    coordinates = (torch.arange(grid) + 0.5) / grid * 2 - 1
    num_frequencies = head_dim // 4
    frequencies = 2 * math.pi * base ** (-torch.arange(num_frequencies) / num_frequencies)
    angles = coordinates[:, None] * frequencies  # (grid, F)
    rows = angles[:, None].expand(grid, grid, -1)
    columns = angles[None, :].expand(grid, grid, -1)
    return torch.cat((rows, columns), dim=-1).reshape(grid * grid, 2 * num_frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of each token; x: (N, H, L, d), cos and sin: (L, d/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """Self-attention with rotary positions; q, k and v are matrices of their own, for Muon."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix the tokens, (N, L, D) -> (N, L, D); tokens without a position get angle 0."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )  # (N, heads, L, d)
        q, k = (F.rms_norm(y, y.shape[-1:], eps=_EPS).to(v.dtype) for y in (q, k))
        q, k = (rotate(y, cos, sin).to(v.dtype) for y in (q, k))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # (N, L, D)


class MLP(nn.Sequential):
    """Two layers with GELU, hidden 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Block(nn.Module):
    """A plain pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class DiTLayer(nn.Module):
    """A transformer block modulated by a condition: adaLN-zero (DiT, arXiv:2212.09748)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.mlp = MLP(width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        cos: Tensor,
        sin: Tensor,
        site: Site | None = None,
        weight: float | Tensor = 0.0,
        recorded: Recorded = (),
    ) -> tuple[Tensor, Recorded]:
        """Run the layer.

        Args:
            x: Tokens, (N, L, D).
            condition: (N, D).
            cos: Of the positions, (L, d / 2).
            sin: Likewise.
            site: What to record, and to mix with `recorded` if there is any.
            weight: mu, of what was recorded.
            recorded: Of another pass, at the same site.

        Returns:
            Tokens, (N, L, D), and what stood at the site, mixed.
        """
        attention = partial(self.attention, cos=cos, sin=sin)
        branches = ((self.norm1, attention), (self.norm2, self.mlp))
        modulation = self.modulation(F.silu(condition))
        return run_branches(x, modulation, branches, Places(site, weight, recorded))


class OutputLayer(nn.Module):
    """Modulated normalisation and a projection to latent channels."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, latent_dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, L, D) tokens and (N, D) conditions -> (N, L, C)."""
        return self.linear(self.modulated(x, condition))

    def modulated(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return what is projected, (N, L, D)."""
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return modulate(self.norm(x), shift, scale)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t, then two layers."""

    def __init__(self, width: int, num_frequencies: int = 128) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(
            nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Flow times (N,) in [0, 1] -> (N, D)."""
        exponents = torch.arange(self.num_frequencies, device=t.device) / self.num_frequencies
        angles = 1000 * t[:, None].float() * 10_000.0**-exponents
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class DSDViT(nn.Module):
    """Encoder, denoiser and decoder in one; see the module's docstring."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DSDViTConfig) -> None:
        super().__init__()
        self.config = config
        D, C, p = config.width, config.latent_dim, config.patch_size
        # Image head of the encoder: "two convolution layers"; the GELU between them is ours.
        self.image_in = nn.Sequential(nn.Conv2d(3, D, p, stride=p), nn.GELU(), nn.Conv2d(D, D, 1))
        self.mask_token = nn.Parameter(torch.zeros(D))
        self.registers = nn.Parameter(torch.zeros(config.num_registers, D))
        self.blocks = nn.ModuleList(Block(D, config.num_heads) for _ in range(config.depth - 1))
        self.norm = nn.LayerNorm(D, eps=_EPS)
        self.latent_out = nn.Linear(D, C)
        self.latent_in = nn.Linear(C, D)
        self.time_embedding = TimeEmbedding(D)
        self.class_embedding = nn.Embedding(config.num_classes + 1, D)
        self.dit_layer = DiTLayer(D, config.num_heads)
        self.z0_out = OutputLayer(D, C)
        self.velocity_out = OutputLayer(D, C)
        # Image head of the decoder, as in DeTok: 1x1 convolution, pixel shuffle, 3x3 convolution.
        self.image_out = nn.Sequential(
            nn.Conv2d(D, 3 * p * p, 1), nn.PixelShuffle(p), nn.Conv2d(3, 3, 3, padding=1)
        )
        self.class_out = nn.Linear(C, config.num_classes)
        self.teacher_out = nn.Linear(D, config.teacher_dim)
        if config.representation_head:
            self.representation_out = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        angles = rotary_table(config.grid, D // config.num_heads)
        still = torch.zeros(config.num_registers, angles.shape[1])  # registers have no position
        angles = torch.cat((still, angles))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights: Xavier, N(0, 0.02^2) for tables, zero for every modulation."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for layer in (self.dit_layer, self.z0_out, self.velocity_out):
            nn.init.zeros_(layer.modulation.weight)
        for linear in (self.time_embedding.mlp[0], self.time_embedding.mlp[2]):
            nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.normal_(self.class_embedding.weight, std=0.02)
        nn.init.normal_(self.registers, std=0.02)
        # z0_out stays Xavier: its output is normalised, and a zero has no direction.
        nn.init.zeros_(self.velocity_out.linear.weight)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights that map hidden features to hidden features, each (out, in).

        Muon treats these; tables, tokens, biases, norms, convolutions and the maps from or to
        pixels, latents, classes and teacher tokens are left to AdamW.
        """
        inner: list[nn.Module] = [
            self.blocks, self.dit_layer, self.time_embedding,
            self.z0_out.modulation, self.velocity_out.modulation,
        ]  # fmt: skip
        if self.config.representation_head:
            inner.append(self.representation_out)
        return [p for module in inner for p in module.parameters() if p.ndim == 2]

    def layers(self) -> list[nn.Module]:
        """Return the transformer layers: what is worth compiling, and recomputing for memory."""
        return [*self.blocks, self.dit_layer]

    def velocity_head(self) -> "VelocityHead":
        """Return a copy of what predicts velocities."""
        return VelocityHead(self)

    def with_head(self, head: "VelocityHead") -> "DSDViT":
        """Return a copy with another head, whose clean latents are not right any more."""
        network = copy.deepcopy(self)
        for name, part in head.named_children():
            getattr(network, name).load_state_dict(part.state_dict())
        return network

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the clean latents of images, normalised per token.

        Args:
            x: Images in [-1, 1], (N, 3, H, W).
            mask: Patches to hide behind the mask token, (N, L), true = hidden.

        Returns:
            z, (N, L, C), float32.
        """
        z, _ = self.encode_with_features(x, mask)
        return z

    def encode_with_features(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `encode` does, and the features that it is read from, (N, L, D)."""
        tokens = self.image_in(x).flatten(2).transpose(1, 2)  # (N, L, D)
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token, tokens)
        h, _ = self._backbone(tokens)
        with _in_float32(h):
            return self._normalize(self.latent_out(h.float())), h

    def denoise(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """Run the second pass, on noised latents; it is told neither the time nor the class.

        Args:
            z_t: Noised latents, (N, L, C).

        Returns:
            h: Features of the last block, (N, L, D), and the teacher's tokens as predicted from
            the block that is aligned, (N, L, teacher_dim).
        """
        h, tapped = self._backbone(self.latent_in(z_t))
        return h, self.teacher_out(tapped)

    def predict_z0(self, h: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return the clean latent (N, L, C), normalised, from h (N, L, D), t (N,), labels (N,)."""
        return self._normalize(self._head(self.z0_out, h, t, labels))

    def predict_velocity(self, h: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return the velocity (N, L, C), float32, from h (N, L, D), t (N,) and labels (N,)."""
        return self._head(self.velocity_out, h, t, labels)

    def decode(self, h: Tensor) -> Tensor:
        """Return images (N, 3, H, W), about [-1, 1], from the features h of the second pass."""
        grid = self.config.grid
        with _in_float32(h):
            return self.image_out(h.float().transpose(1, 2).unflatten(2, (grid, grid)))

    def classify(self, z: Tensor) -> Tensor:
        """Return class logits (N, K) from latents (N, L, C)."""
        with _in_float32(z):
            return self.class_out(z.mean(dim=1))

    def predict_features(self, h: Tensor) -> Tensor:
        """Return what the averaged network's features (N, L, D) should be, from h (N, L, D)."""
        return self.representation_out(h)

    def _normalize(self, z: Tensor) -> Tensor:
        return normalize_latent(z) if self.config.normalize_latent else z

    def _head(self, output: OutputLayer, h: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        condition = self.time_embedding(t) + self.class_embedding(labels)  # (N, D)
        skip = self.config.num_registers
        h, _ = self.dit_layer(h, condition, self.cos[skip:], self.sin[skip:])
        with _in_float32(h):
            return output(h.float(), condition.float())

    def _backbone(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks on tokens (N, L, D); return the last and the tapped output, (N, L, D)."""
        skip = self.config.num_registers
        # Registers are float32, so the residual stream is too, whatever autocast does inside.
        registers = self.registers.expand(len(tokens), -1, -1)
        x = torch.cat((registers, tokens.float()), dim=1)  # (N, registers + L, D)
        tapped = x
        for number, block in enumerate(self.blocks):
            x = block(x, self.cos, self.sin)
            if number == self.config.teacher_block:
                tapped = x
        return self.norm(x)[:, skip:], tapped[:, skip:]


class DenoisingParts(nn.Module):
    """Copies of what of a ViT only denoises: they can move, and the ViT's own stay.

    Time, classes and DiT layer serve both heads of the ViT; what is trained alone has its own.

    Args:
        network: The ViT.

    Attributes:
        config: Its architecture.
    """

    cos: Tensor
    sin: Tensor
    process: Literal["linear_path"] = "linear_path"

    def __init__(self, network: DSDViT) -> None:
        super().__init__()
        self.config = network.config
        self.time_embedding = copy.deepcopy(network.time_embedding)
        self.class_embedding = copy.deepcopy(network.class_embedding)
        self.dit_layer = copy.deepcopy(network.dit_layer)
        self.register_buffer("cos", network.cos.clone(), persistent=False)
        self.register_buffer("sin", network.sin.clone(), persistent=False)

    @property
    def null_class(self) -> int:
        """The label of no class."""
        return self.config.num_classes

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape of one sample's noise, (L, C)."""
        return self.config.num_tokens, self.config.latent_dim

    def condition(self, t: Tensor, labels: Tensor) -> Tensor:
        """Return what modulates the DiT layer, (N, D), of flow times (N,) and labels (N,)."""
        return self.time_embedding(t) + self.class_embedding(labels)

    @property
    def rotation(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the DiT layer's tokens, which have no registers among them."""
        skip = self.config.num_registers
        return self.cos[skip:], self.sin[skip:]


class VelocityHead(DenoisingParts):
    """A copy of what predicts the velocity from features.

    It is asked as a DiT is, with features in place of latents.
    """

    def __init__(self, network: DSDViT) -> None:
        super().__init__(network)
        self.velocity_out = copy.deepcopy(network.velocity_out)

    def layers(self) -> list[nn.Module]:
        """Return the one transformer layer."""
        return [self.dit_layer]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights that map hidden features to hidden features, each (out, in)."""
        inner = [self.dit_layer, self.time_embedding, self.velocity_out.modulation]
        return [p for module in inner for p in module.parameters() if p.ndim == 2]

    def forward(self, h: Tensor, t: Tensor, labels: Tensor, fusion: Fusion | None = None) -> Tensor:
        """Return the velocity.

        Args:
            h: Features of the noised latent, (N, L, D), as `DSDViT.denoise` gives them.
            t: Flow times, (N,).
            labels: Classes in [0, K], K the null class, (N,).
            fusion: What of another pass to mix in.

        Returns:
            (N, L, C), float32.
        """
        condition = self.condition(t, labels)
        mixed = () if fusion is None else (fusion.site, fusion.weight, fusion.recorded[0])
        x, _ = self.dit_layer(h, condition, *self.rotation, *mixed)
        return self._velocity(x, condition)

    def record(
        self, h: Tensor, t: Tensor, labels: Tensor, site: Site
    ) -> tuple[Tensor, list[Recorded]]:
        """Return what `forward` does, and what stood at a site of the one layer."""
        condition = self.condition(t, labels)
        x, found = self.dit_layer(h, condition, *self.rotation, site)
        return self._velocity(x, condition), [found]

    def _velocity(self, x: Tensor, condition: Tensor) -> Tensor:
        with _in_float32(x):
            return self.velocity_out(x.float(), condition.float())
