"""EDM's two U-Nets: DDPM++ and ADM (Karras et al., arXiv:2206.00364, App. F.2 and Table 8).

Both are residual blocks by level, the encoder's outputs joined into the decoder one by one.
Parameters are named as in the published pickles, whose weights load as they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.denoiser import Denoiser, double, halve, resample_filter
from selfdistill.networks.edm_config import ADMConfig, DDPMppConfig, DenoiserConfig

Init = Callable[[nn.Linear | nn.Conv2d], None]


class Style(NamedTuple):
    """What blocks of the two networks differ in.

    Attributes:
        eps: Of the normalisation.
        skip_scale: What a sum with the residual stream is scaled by.
        head_width: Width of an attention head; None: one head.
        attends_throughout: Whether all blocks of a level in the decoder attend, or its last alone.
        scales_and_shifts: Whether the embedding scales and shifts the second normalisation's
            output, or is added before it.
        projects_resampled: Whether the residual stream is projected where it is resampled.
        init: Initial weights of layers.
        init_last: Of each branch's last layer.
        init_qkv: Of queries, keys and values.
    """

    eps: float
    skip_scale: float
    head_width: int | None
    attends_throughout: bool
    scales_and_shifts: bool
    projects_resampled: bool
    init: Init
    init_last: Init
    init_qkv: Init


def _xavier(scale: float) -> Init:
    def init(layer: nn.Linear | nn.Conv2d) -> None:
        nn.init.xavier_uniform_(layer.weight, gain=scale)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    return init


def _uniform(layer: nn.Linear | nn.Conv2d) -> None:
    """Draw from the uniform distribution of deviation 1 / sqrt(3 fan_in), bias too."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound)


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


DDPMPP = Style(
    eps=1e-6,
    skip_scale=math.sqrt(0.5),
    head_width=None,
    attends_throughout=False,
    scales_and_shifts=False,
    projects_resampled=True,
    init=_xavier(1),
    init_last=_xavier(1e-5),
    init_qkv=_xavier(math.sqrt(0.2)),
)
ADM = Style(
    eps=1e-5,
    skip_scale=1.0,
    head_width=64,
    attends_throughout=True,
    scales_and_shifts=True,
    projects_resampled=False,
    init=_uniform,
    init_last=_zero,
    init_qkv=_uniform,
)


class Conv(nn.Conv2d):
    """A convolution that keeps the side, behind a resampling to half or twice of it."""

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, resampling: str) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self._resampling = resampling
        if resampling != "keep":
            self.register_buffer("resample_filter", resample_filter())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h', w')."""
        if self._resampling != "keep":
            x = _resample(x, self._resampling, self.resample_filter)
        return super().forward(x)


class Resampling(nn.Module):
    """The resampling alone."""

    resample_filter: Tensor

    def __init__(self, resampling: str) -> None:
        super().__init__()
        self._resampling = resampling
        self.register_buffer("resample_filter", resample_filter())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h', w')."""
        return _resample(x, self._resampling, self.resample_filter)


def _resample(x: Tensor, resampling: str, weights: Tensor) -> Tensor:
    return halve(x, weights) if resampling == "down" else double(x, weights)


class Block(nn.Module):
    """A residual block, with attention behind it or without."""

    skip: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        style: Style,
        dropout: float,
        *,
        resampling: str = "keep",
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self._style, self.dropout = style, dropout
        self.norm0 = _norm(in_channels, style)
        self.conv0 = Conv(in_channels, out_channels, 3, resampling)
        self.affine = nn.Linear(embedding, (1 + style.scales_and_shifts) * out_channels)
        self.norm1 = _norm(out_channels, style)
        self.conv1 = Conv(out_channels, out_channels, 3, "keep")
        resampled = resampling != "keep"
        if in_channels != out_channels or (resampled and style.projects_resampled):
            self.skip = Conv(in_channels, out_channels, 1, resampling)
        else:
            self.skip = Resampling(resampling) if resampled else None
        self.attends = attends
        if attends:
            self.num_heads = out_channels // style.head_width if style.head_width else 1
            self.norm2 = _norm(out_channels, style)
            self.qkv = Conv(out_channels, 3 * out_channels, 1, "keep")
            self.proj = Conv(out_channels, out_channels, 1, "keep")

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        last = {"conv1", "proj"}
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                init = self._style.init_last if name in last else self._style.init
                (self._style.init_qkv if name == "qkv" else init)(layer)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: (N, C, h, w).
            embedding: (N, E).

        Returns:
            (N, C', h', w').
        """
        y = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(embedding)[..., None, None].to(y.dtype)
        if self._style.scales_and_shifts:
            scale, shift = modulation.chunk(2, dim=1)
            y = F.silu(torch.addcmul(shift, self.norm1(y), scale + 1))
        else:
            y = F.silu(self.norm1(y + modulation))
        y = self.conv1(F.dropout(y, self.dropout, self.training))
        x = (y + (x if self.skip is None else self.skip(x))) * self._style.skip_scale
        if self.attends:
            x = (self.proj(self._attend(self.qkv(self.norm2(x)))) + x) * self._style.skip_scale
        return x

    def _attend(self, qkv: Tensor) -> Tensor:
        """(N, 3 C, h, w), by head and channel queries, keys and values, -> (N, C, h, w)."""
        side = qkv.shape[2:]
        q, k, v = (
            part.transpose(-1, -2).contiguous()  # (N, heads, L, d), as fused kernels want them
            for part in qkv.flatten(2).unflatten(1, (self.num_heads, -1, 3)).unbind(3)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(-1, -2).flatten(1, 2).unflatten(2, side)


def _norm(channels: int, style: Style) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=style.eps)


def positions(t: Tensor, width: int, *, both_ends: bool) -> Tensor:
    """Return cosines and then sines of times at frequencies from 1 to 1 / 10,000.

    Args:
        t: (N,).
        width: Of the result, even.
        both_ends: Whether 1 / 10,000 is among the frequencies.

    Returns:
        (N, width), float32.
    """
    k = torch.arange(width // 2, device=t.device, dtype=torch.float32)
    frequencies = (1 / 10_000) ** (k / (width // 2 - both_ends))
    angles = t[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class UNet(nn.Module):
    """Encoder and decoder, level by level."""

    def __init__(self, config: DenoiserConfig, style: Style) -> None:
        super().__init__()
        self.config = config
        sides, embedding = config.sides, 4 * config.width
        channels = [config.width * multiple for multiple in config.multipliers]

        def block(in_channels: int, out_channels: int, **kind: object) -> Block:
            return Block(in_channels, out_channels, embedding, style, config.dropout, **kind)  # type: ignore[arg-type]

        enc: dict[str, nn.Module] = {}
        enc[_name(sides[0], "conv")] = Conv(config.latent_channels, config.width, 3, "keep")
        skips, width = [config.width], config.width
        for level, (side, out) in enumerate(zip(sides, channels, strict=True)):
            if level:
                enc[_name(side, "down")] = block(width, width, resampling="down")
                skips.append(width)
            for number in range(config.num_blocks):
                attends = side in config.attention_sides
                enc[_name(side, f"block{number}")] = block(width, out, attends=attends)
                skips.append(out)
                width = out
        dec: dict[str, nn.Module] = {}
        for level, (side, out) in reversed(list(enumerate(zip(sides, channels, strict=True)))):
            if level == len(sides) - 1:
                dec[_name(side, "in0")] = block(width, width, attends=True)
                dec[_name(side, "in1")] = block(width, width)
            else:
                dec[_name(side, "up")] = block(width, width, resampling="up")
            for number in range(config.num_blocks + 1):
                last = number == config.num_blocks
                attends = side in config.attention_sides and (last or style.attends_throughout)
                dec[_name(side, f"block{number}")] = block(
                    width + skips.pop(), out, attends=attends
                )
                width = out
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)
        self.out_width = width

    def reset_blocks(self, style: Style) -> None:
        """Draw the initial weights of encoder and decoder."""
        for module in (*self.enc.values(), *self.dec.values()):
            if isinstance(module, Block):
                module.reset_parameters()
            elif isinstance(module, Conv):
                style.init(module)

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return what each of the encoder's blocks leaves of (N, C, h, w), the last last."""
        encoded: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            encoded.append(x)
        return encoded

    def run_decoder(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return what the decoder's last block leaves, (N, D, h, w)."""
        x, skips = encoded[-1], list(encoded)
        for layer in self.dec.values():
            if isinstance(layer, Block):
                if x.shape[1] != layer.in_channels:
                    x = torch.cat((x, skips.pop()), dim=1)
                x = layer(x, embedding)
        return x


def _name(side: int, part: str) -> str:
    return f"{side}x{side}_{part}"


class DDPMppUNet(UNet):
    """DDPM++: one attention head, sums scaled by sqrt(1/2), the embedding added."""

    map_augment: nn.Linear | None

    def __init__(self, config: DDPMppConfig) -> None:
        super().__init__(config, DDPMPP)
        width, inner = config.width, 4 * config.width
        self.map_label = nn.Linear(config.num_classes, width) if config.conditional else None
        augment = config.augment_dim
        self.map_augment = nn.Linear(augment, width, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(width, inner), nn.Linear(inner, inner)
        side = config.latent_size
        self.dec[_name(side, "aux_norm")] = _norm(self.out_width, DDPMPP)
        self.dec[_name(side, "aux_conv")] = Conv(self.out_width, config.latent_channels, 3, "keep")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        self.reset_blocks(DDPMPP)
        for layer in (self.map_label, self.map_augment, self.map_layer0, self.map_layer1):
            if layer is not None:
                DDPMPP.init(layer)
        last = self.dec[_name(self.config.latent_size, "aux_conv")]
        assert isinstance(last, Conv)
        DDPMPP.init_last(last)

    def embed(self, noise: Tensor, classes: Tensor, augment: Tensor | None) -> Tensor:
        """Return (N, 4 D), as `Denoiser.embed`."""
        cosines, sines = positions(noise, self.config.width, both_ends=True).chunk(2, dim=1)
        embedding = torch.cat((sines, cosines), dim=1)
        if self.map_label is not None:
            embedding = embedding + self.map_label(classes * math.sqrt(classes.shape[1]))
        if self.map_augment is not None:
            if augment is None:
                augment = noise.new_zeros(len(noise), self.map_augment.in_features)
            embedding = embedding + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return F, (N, C, h, w)."""
        x, side = self.run_decoder(encoded, embedding), self.config.latent_size
        return self.dec[_name(side, "aux_conv")](F.silu(self.dec[_name(side, "aux_norm")](x)))


class ADMUNet(UNet):
    """ADM: heads of 64 channels, the embedding scales and shifts."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__(config, ADM)
        width, inner = config.width, 4 * config.width
        self.map_layer0, self.map_layer1 = nn.Linear(width, inner), nn.Linear(inner, inner)
        self.map_label = (
            nn.Linear(config.num_classes, inner, bias=False) if config.conditional else None
        )
        self.out_norm = _norm(self.out_width, ADM)
        self.out_conv = Conv(self.out_width, config.latent_channels, 3, "keep")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        self.reset_blocks(ADM)
        for layer in (self.map_layer0, self.map_layer1):
            ADM.init(layer)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)  # as ADM's table of classes
        ADM.init_last(self.out_conv)

    def embed(self, noise: Tensor, classes: Tensor, augment: Tensor | None) -> Tensor:
        """Return (N, 4 D), as `Denoiser.embed`; augmentations are not seen."""
        embedding = positions(noise, self.config.width, both_ends=False)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            embedding = embedding + self.map_label(classes)
        return F.silu(embedding)

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return F, (N, C, h, w)."""
        return self.out_conv(F.silu(self.out_norm(self.run_decoder(encoded, embedding))))


class EDM(Denoiser):
    """EDM's denoiser, around either of the two U-Nets."""

    config: DDPMppConfig | ADMConfig

    def __init__(self, config: DDPMppConfig | ADMConfig) -> None:
        super().__init__(config)
        self.model: DDPMppUNet | ADMUNet
        self.model = DDPMppUNet(config) if isinstance(config, DDPMppConfig) else ADMUNet(config)

    def embed(self, noise: Tensor, classes: Tensor, augment: Tensor | None) -> Tensor:
        """Return what modulates the blocks, (N, 4 D)."""
        return self.model.embed(noise, classes, augment)

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return what each of the encoder's blocks leaves."""
        return self.model.encode(x, embedding)

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return F, (N, C, h, w)."""
        return self.model.decode(encoded, embedding)

    def layers(self) -> list[nn.Module]:
        """Return the blocks: what is worth compiling, and recomputing for memory."""
        return [module for module in self.modules() if isinstance(module, Block)]
