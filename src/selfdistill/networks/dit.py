"""DiT (Peebles and Xie, arXiv:2212.09748v2): a transformer on patches of latents, adaLN-zero.

    z_t -> patches -> + fixed positions -> blocks, modulated by time and class -> patches -> output

Attributes are named as in the published weights, which load as they are: `DiT-XL-2-256x256.pt` has
the keys of `DiT.state_dict()`, and what is saved here loads there.

What stands in a block can be recorded in one pass and mixed into another (`networks.fusion`).
"""

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.dit_config import DiTConfig, TransformerConfig
from selfdistill.networks.fusion import Fusion, Places, Recorded, Site, run_branches
from selfdistill.networks.modulation import modulate

_EPS = 1e-6
_NUM_FREQUENCIES = 128


class Attention(nn.Module):
    """Self-attention with one layer for queries, keys and values, in that order."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens, (N, L, D) -> (N, L, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (N, L, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, L, d) each
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU in its tanh form, hidden 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Modulation(nn.Sequential):
    """SiLU and a layer from the condition (N, D) to `num_vectors` vectors of width D."""

    def __init__(self, width: int, num_vectors: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, num_vectors * width))


class Block(nn.Module):
    """A transformer block whose norms and gates the condition sets."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.mlp = MLP(width)
        self.adaLN_modulation = Modulation(width, 6)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        site: Site | None = None,
        weight: float | Tensor = 0.0,
        recorded: Recorded = (),
    ) -> tuple[Tensor, Recorded]:
        """Run the block.

        Args:
            x: Tokens, (N, L, D).
            condition: (N, D).
            site: What to record, and to mix with `recorded` if there is any.
            weight: mu, of what was recorded.
            recorded: Of another pass through this block, at the same site.

        Returns:
            Tokens, (N, L, D), and what stood at the site, mixed.
        """
        branches = ((self.norm1, self.attn), (self.norm2, self.mlp))
        modulation = self.adaLN_modulation(condition)
        return run_branches(x, modulation, branches, Places(site, weight, recorded))


class PatchEmbedding(nn.Module):
    """A convolution from patches to tokens."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, L, D), row by row."""
        return self.proj(z).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time as it is given, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * _NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        k = torch.arange(_NUM_FREQUENCIES, device=t.device)
        frequencies = torch.exp(-math.log(10_000) * k / _NUM_FREQUENCIES)
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1))


class ClassEmbedding(nn.Module):
    """A vector for each class and for the null class, the last."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """(N,) -> (N, D)."""
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    """Modulated normalisation and a projection to the values of a patch."""

    def __init__(self, width: int, num_values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, num_values)
        self.adaLN_modulation = Modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, L, D) tokens and (N, D) conditions -> (N, L, P)."""
        return self.linear(self.modulated(x, condition))

    def modulated(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return what is projected, (N, L, D)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return modulate(self.norm_final(x), shift, scale)


def position_table(grid: int, width: int) -> Tensor:
    """Return fixed sinusoids of both coordinates, (grid^2, width), row-major tokens.

    The first half encodes the column, the second the row; each is sines and then cosines.
    """
    k = torch.arange(width // 4, dtype=torch.float64)
    frequencies = 10_000.0 ** (-k / (width / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (grid, width / 4)
    one = torch.cat((angles.sin(), angles.cos()), dim=-1)  # (grid, width / 2)
    columns = one[None].expand(grid, grid, -1)
    rows = one[:, None].expand(grid, grid, -1)
    return torch.cat((columns, rows), dim=-1).reshape(grid * grid, width).float()


class Transformer(nn.Module):
    """What DiT and SiT have in common."""

    process: Literal["linear_chain", "linear_path"]

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        D, p = config.width, config.patch_size
        self.x_embedder = PatchEmbedding(config.latent_channels, D, p)
        self.t_embedder = TimeEmbedding(D)
        self.y_embedder = ClassEmbedding(config.num_classes, D)
        # Not trained, but part of the published weights.
        self.pos_embed = nn.Parameter(position_table(config.grid, D)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(D, config.num_heads) for _ in range(config.depth))
        self.final_layer = FinalLayer(D, p * p * config.out_channels)

    def load_published(self, path: Path) -> None:
        """Take published weights; see `dit_weights.load_published`."""
        from selfdistill.networks.dit_weights import load_published

        load_published(self, path)

    @property
    def null_class(self) -> int:
        """The label of no class."""
        return self.config.num_classes

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of one sample's noise, (C, h, w)."""
        return self.config.latent_channels, self.config.latent_size, self.config.latent_size

    def reset_parameters(self) -> None:
        """Draw the initial weights: Xavier, N(0, 0.02^2) for time and class, zero at all gates."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for linear in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.final_layer.linear.weight)

    def layers(self) -> list[nn.Module]:
        """Return the blocks: what is worth compiling, and recomputing for memory."""
        return list(self.blocks)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights that map hidden features to hidden features, each (out, in).

        Queries, keys and values are one matrix in the published layout.
        """
        inner: list[nn.Module] = [self.blocks, self.t_embedder, self.final_layer.adaLN_modulation]
        return [p for module in inner for p in module.parameters() if p.ndim == 2]

    def tokens(self, z_t: Tensor) -> Tensor:
        """Return the tokens of latents (N, C, h, w), with their positions, (N, L, D)."""
        return self.x_embedder(z_t) + self.pos_embed

    def condition(self, t: Tensor, labels: Tensor) -> Tensor:
        """Return what modulates the blocks, (N, D), of times (N,) and labels (N,)."""
        return self.t_embedder(t) + self.y_embedder(labels)

    def run_blocks(
        self,
        x: Tensor,
        condition: Tensor,
        *,
        site: Site | None = None,
        fusion: Fusion | None = None,
        num_blocks: int | None = None,
    ) -> tuple[Tensor, list[Recorded]]:
        """Run the blocks.

        Args:
            x: Tokens, (N, L, D).
            condition: (N, D).
            site: What each block is to record.
            fusion: What to mix; its site is the one that is recorded then.
            num_blocks: How many of the blocks; None: all.

        Returns:
            Tokens, (N, L, D), and by block what stood at the site.
        """
        recorded = []
        for number, block in enumerate(self.blocks[:num_blocks]):
            if fusion is None:
                x, found = block(x, condition, site)
            else:
                x, found = block(x, condition, fusion.site, fusion.weight, fusion.recorded[number])
            recorded.append(found)
        return x, recorded

    def run_part(self, x: Tensor, condition: Tensor, first: int, last: int) -> Tensor:
        """Return what blocks `first` to `last` - 1 make of tokens (N, L, D)."""
        for block in self.blocks[first:last]:
            x, _ = block(x, condition)
        return x

    def last_tokens(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return what the last layer projects to patches, (N, L, D), float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.final_layer.modulated(x.float(), condition.float())

    def to_latents(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the last layer's patches as an image, (N, out_channels, h, w), float32."""
        with torch.autocast(x.device.type, enabled=False):
            values = self.final_layer(x.float(), condition.float())  # (N, L, p p C)
        g, p = self.config.grid, self.config.patch_size
        patches = values.unflatten(-1, (p, p, -1)).unflatten(1, (g, g))  # (N, g, g, p, p, C)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def forward(
        self, z_t: Tensor, t: Tensor, labels: Tensor, fusion: Fusion | None = None
    ) -> Tensor:
        """Predict what the class says.

        Args:
            z_t: Noised latents, (N, C, h, w).
            t: Times as the class says, (N,).
            labels: Classes in [0, K], K the null class, (N,).
            fusion: What of another pass to mix in.

        Returns:
            What `to_latents` does.
        """
        condition = self.condition(t, labels)
        x, _ = self.run_blocks(self.tokens(z_t), condition, fusion=fusion)
        return self.to_latents(x, condition)

    def record(
        self, z_t: Tensor, t: Tensor, labels: Tensor, site: Site
    ) -> tuple[Tensor, list[Recorded]]:
        """Return what `forward` does, and by block what stood at a site."""
        condition = self.condition(t, labels)
        x, recorded = self.run_blocks(self.tokens(z_t), condition, site=site)
        return self.to_latents(x, condition), recorded


class DiT(Transformer):
    """Noise of latents at a discrete time: t in [0, 999], 999 the noisiest.

    What it puts out is the noise, and then, if there are channels for it, what interpolates its
    variance.
    """

    process = "linear_chain"

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.reset_parameters()
