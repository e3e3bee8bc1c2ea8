"""EDM2's U-Net, config G (Karras et al., arXiv:2312.02696, Fig. 21 and App. B).

Magnitudes are kept. Weights enter every layer normalised, so that only their direction matters; in
training they are also brought back to that norm once a step (`normalize_weights`), or the learning
rate would decay in effect. Sums and joins of two signals are weighted so that magnitudes stay what
they were. There are no biases. Parameters are named as in the published pickles.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfdistill.networks.denoiser import Denoiser, double, halve, precondition, resample_filter
from selfdistill.networks.edm_config import EDM2Config

_EPS = 1e-4
_HEAD_WIDTH = 64
_LABEL_BALANCE = 0.5  # shares of the second signal in each sum or join
_JOIN_BALANCE = 0.5
_RESIDUAL_BALANCE = 0.3
_ATTENTION_BALANCE = 0.3
_LARGEST = 256.0  # activations are clipped there


def normalize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Scale vectors to a root mean square of 1.

    Args:
        x: Any shape.
        dims: The dimensions along which a vector lies.
    """
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    norm = _EPS + norm * math.sqrt(norm.numel() / x.numel())
    return x / norm.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Return SiLU, scaled to keep the magnitude of standard normal values (EDM2, Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return (1 - share) a + share b, scaled to keep magnitudes (EDM2, Eq. 88)."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Join along the channels, b with a share of the magnitude (EDM2, Eq. 103)."""
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - share) ** 2 + share**2))
    weighted_a = a * (scale / math.sqrt(num_a) * (1 - share))
    return torch.cat((weighted_a, b * (scale / math.sqrt(num_b) * share)), dim=1)


class Layer(nn.Module):
    """A linear layer, or a convolution that keeps the side, by normalised weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None = None) -> None:
        super().__init__()
        shape = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *shape))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(N, C, ...) -> (N, C', ...), scaled by `gain`."""
        weight = normalize(self.weight.float(), tuple(range(1, self.weight.ndim)))
        weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Fourier(nn.Module):
    """Cosines of numbers at random frequencies and phases, which are part of the weights."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, t: Tensor) -> Tensor:
        """(N,) -> (N, D), float32."""
        return torch.cos(torch.outer(t.float(), self.freqs) + self.phases) * math.sqrt(2)


class Block(nn.Module):
    """A residual block of the encoder or the decoder, with attention or without."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        *,
        encodes: bool,
        resampling: str = "keep",
        attends: bool = False,
    ) -> None:
        super().__init__()
        self._encodes, self._resampling, self.dropout = encodes, resampling, dropout
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = Layer(out_channels if encodes else in_channels, out_channels, 3)
        self.emb_linear = Layer(embedding, out_channels)
        self.conv_res1 = Layer(out_channels, out_channels, 3)
        self.conv_skip = (
            Layer(in_channels, out_channels, 1) if in_channels != out_channels else None
        )
        self.num_heads = out_channels // _HEAD_WIDTH if attends else 0
        if self.num_heads:
            self.attn_qkv = Layer(out_channels, 3 * out_channels, 1)
            self.attn_proj = Layer(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Run the block.

        Args:
            x: (N, C, h, w).
            embedding: (N, E).

        Returns:
            (N, C', h', w').
        """
        if self._resampling != "keep":
            resample = halve if self._resampling == "down" else double
            x = resample(x, resample_filter(x.device))
        if self._encodes:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), (1,))
        y = self.conv_res0(mp_silu(x))
        modulation = self.emb_linear(embedding, self.emb_gain)[..., None, None] + 1
        y = F.dropout(mp_silu(y * modulation.to(y.dtype)), self.dropout, self.training)
        y = self.conv_res1(y)
        if not self._encodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, _RESIDUAL_BALANCE)
        if self.num_heads:
            x = mp_sum(x, self.attn_proj(self._attend(self.attn_qkv(x))), _ATTENTION_BALANCE)
        return x.clip(-_LARGEST, _LARGEST)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(N, 3 C, h, w), by head and channel queries, keys and values, -> (N, C, h, w)."""
        side = qkv.shape[2:]
        parts = normalize(qkv.flatten(2).unflatten(1, (self.num_heads, -1, 3)), (2,))
        # (N, heads, L, d), as fused kernels want them
        q, k, v = (part.transpose(-1, -2).contiguous() for part in parts.unbind(3))
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(-1, -2).flatten(1, 2).unflatten(2, side)


class UNet(nn.Module):
    """Encoder and decoder, level by level."""

    def __init__(self, config: EDM2Config) -> None:
        super().__init__()
        channels = [config.width * multiple for multiple in config.multipliers]
        sides, embedding = config.sides, max(channels)
        self.out_gain = nn.Parameter(torch.zeros(1))
        self.emb_fourier = Fourier(channels[0])
        self.emb_noise = Layer(channels[0], embedding)
        self.emb_label = Layer(config.num_classes, embedding) if config.conditional else None

        def block(in_channels: int, out_channels: int, *, encodes: bool, **kind: object) -> Block:
            return Block(
                in_channels,
                out_channels,
                embedding,
                config.dropout,
                encodes=encodes,
                **kind,  # type: ignore[arg-type]
            )

        # A channel of ones beside the data stands in for biases.
        enc: dict[str, nn.Module] = {
            f"{sides[0]}x{sides[0]}_conv": Layer(config.latent_channels + 1, channels[0], 3)
        }
        skips, width = [channels[0]], channels[0]
        for level, (side, out) in enumerate(zip(sides, channels, strict=True)):
            attends = side in config.attention_sides
            if level:
                enc[f"{side}x{side}_down"] = block(width, width, encodes=True, resampling="down")
                skips.append(width)
            for number in range(config.num_blocks):
                name = f"{side}x{side}_block{number}"
                enc[name] = block(width, out, encodes=True, attends=attends)
                skips.append(out)
                width = out
        dec: dict[str, nn.Module] = {}
        for level, (side, out) in reversed(list(enumerate(zip(sides, channels, strict=True)))):
            attends = side in config.attention_sides
            if level == len(sides) - 1:
                dec[f"{side}x{side}_in0"] = block(width, width, encodes=False, attends=True)
                dec[f"{side}x{side}_in1"] = block(width, width, encodes=False)
            else:
                dec[f"{side}x{side}_up"] = block(width, width, encodes=False, resampling="up")
            for number in range(config.num_blocks + 1):
                name, joined = f"{side}x{side}_block{number}", width + skips.pop()
                dec[name] = block(joined, out, encodes=False, attends=attends)
                width = out
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)
        self.out_conv = Layer(width, config.latent_channels, 3)

    def embed(self, noise: Tensor, classes: Tensor) -> Tensor:
        """Return what modulates the blocks, (N, E), of c_noise (N,) and one-hot classes (N, K)."""
        embedding = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None:
            of_classes = self.emb_label(classes * math.sqrt(classes.shape[1]))
            embedding = mp_sum(embedding, of_classes, _LABEL_BALANCE)
        return mp_silu(embedding)

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return what each of the encoder's blocks leaves."""
        x, encoded = torch.cat((x, torch.ones_like(x[:, :1])), dim=1), list[Tensor]()
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            encoded.append(x)
        return encoded

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return F, (N, C, h, w)."""
        x, skips = encoded[-1], list(encoded)
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), _JOIN_BALANCE)
            x = layer(x, embedding)
        return self.out_conv(x, self.out_gain)


class EDM2(Denoiser):
    """EDM2's denoiser, and the log-variance of its error that weights its losses.

    Attributes:
        config: The architecture.
    """

    config: EDM2Config

    def __init__(self, config: EDM2Config) -> None:
        super().__init__(config)
        self.unet = UNet(config)
        self.logvar_fourier = self.logvar_linear = None
        if config.logvar_channels:
            self.logvar_fourier = Fourier(config.logvar_channels)
            self.logvar_linear = Layer(config.logvar_channels, 1)

    def embed(self, noise: Tensor, classes: Tensor, augment: Tensor | None) -> Tensor:
        """Return what modulates the blocks, (N, E); augmentations are not seen."""
        return self.unet.embed(noise, classes)

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return what each of the encoder's blocks leaves."""
        return self.unet.encode(x, embedding)

    def decode(self, encoded: list[Tensor], embedding: Tensor) -> Tensor:
        """Return F, (N, C, h, w)."""
        return self.unet.decode(encoded, embedding)

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Return u(sigma), the log-variance of the denoiser's error, (N,) (EDM2, Eq. 21).

        Args:
            sigma: Noise levels, (N,).

        Raises:
            ValueError: If the network has none.
        """
        if self.logvar_fourier is None or self.logvar_linear is None:
            raise ValueError("this network has no log-variance: give it logvar_channels")
        with torch.autocast(sigma.device.type, enabled=False):
            return self.logvar_linear(self.logvar_fourier(precondition(sigma).noise))[:, 0]

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Bring all weights back to the norm that they enter the layers with (EDM2, Eq. 66).

        What the network computes does not change. It is called once a step, after the update: no
        weight is written between a forward and a backward pass.
        """
        for weight in self._weights():
            weight.copy_(normalize(weight, tuple(range(1, weight.ndim))))

    def layers(self) -> list[nn.Module]:
        """Return the blocks: what is worth compiling, and recomputing for memory."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def _weights(self) -> Iterator[nn.Parameter]:
        return (layer.weight for layer in self.modules() if isinstance(layer, Layer))
