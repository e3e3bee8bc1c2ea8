"""Stability's KL autoencoder in diffusers' layout: images to latents eight times smaller and back.

Rombach et al., 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv:2112.10752v2, Sec. 3.1 and App. G; the weights that the papers take are
`stabilityai/sd-vae-ft-ema` (DiT, SiT) and `stabilityai/sd-vae-ft-mse` (EDM2). It puts out the
posterior's mean and standard deviation and draws nothing: `selfdistill.data.latents` samples and
scales, and knows the range of pixels that each paper feeds it. diffusers is imported when a network
is built, not before: it is slow, and few rows need it.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.latents import (
    CONVENTIONS,
    LatentConvention,
    decoded_pixels,
    to_vae,
    unscale_latents,
)
from selfdistill.data.pixels import quantise
from selfdistill.networks.hub import directory_of, local_directory
from selfdistill.networks.vae_config import Decoder, VAEConfig
from selfdistill.networks.weights import check_digest, check_keys, digest, read_weights

_EXAMPLE = "stabilityai/sd-vae-ft-ema"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"

# Of random weights; the configuration of both published ones.
ARCHITECTURE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
}

# What diffusers called attention's projections when the weights were published, and calls them now.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(\.attentions\.\d+\.)({'|'.join(_RENAMED)})\.")


class VAE(nn.Module):
    """Images to the posterior of their latents, and latents to images; frozen, in float32."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.downsampling, self.latent_channels = config.downsampling, config.latent_channels
        self.autoencoder: Any = _create(config)
        self.eval().requires_grad_(False)
        if config.weights_sha256 is not None:
            check_digest(self.digest(), config.weights_sha256, f"VAE {config.weights}")

    def digest(self) -> str:
        """Return the sha256 of all weights, in the order of their names."""
        return digest(self.autoencoder.state_dict())

    @torch.no_grad()
    def encode(self, images: Tensor, convention: LatentConvention) -> Tensor:
        """Compute mean and standard deviation of the latents' posterior, which is not scaled yet.

        The moments of a mirrored image are not the mirrored moments: a set of latents that is to be
        flipped at random holds both orientations.

        Args:
            images: uint8-valued, in [0, 255], (N, 3, H, W).
            convention: Whose range of pixels the network is fed.

        Returns:
            C channels of means, then C of standard deviations, float32, (N, 2C, H / 8, W / 8).

        Raises:
            ValueError: If these are not RGB images, or a side is no multiple of the downsampling.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), got {list(images.shape)}")
        if any(side % self.downsampling for side in images.shape[2:]):
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels have no latents: resize "
                f"or crop them so that both sides are multiples of {self.downsampling}"
            )
        with torch.autocast(images.device.type, enabled=False):
            posterior = self.autoencoder.encode(to_vae(images, convention)).latent_dist
        return torch.cat((posterior.mean, posterior.std), dim=1)  # (N, 2C, H / 8, W / 8)

    def pixels(self, z: Tensor, convention: LatentConvention) -> Tensor:
        """Return the pixels of scaled latents as the convention rounds them.

        Args:
            z: As `sample_latents` scales them, (N, C, h, w).
            convention: Whose latents.

        Returns:
            (N, 8h, 8w, 3), uint8.
        """
        return decoded_pixels(self.decode(unscale_latents(z, convention)), convention)

    @torch.no_grad()
    def decode(self, raw: Tensor) -> Tensor:
        """Decode latents that are not scaled, as `unscale_latents` returns them.

        Args:
            raw: (N, C, h, w).

        Returns:
            About in the range of pixels that the network is fed, neither clamped nor rounded:
            `from_vae` and `decoded_pixels` do so as the convention has it; float32, (N, 3, 8h, 8w).

        Raises:
            ValueError: If the latents have another number of channels.
        """
        if raw.ndim != 4 or raw.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents must be (N, {self.latent_channels}, h, w), got {list(raw.shape)}; sample "
                "moments before they are decoded"
            )
        with torch.autocast(raw.device.type, enabled=False):
            return self.autoencoder.decode(raw.float()).sample


def pixels_of(decoder: Decoder | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what makes pixels, (N, H, W, 3), uint8, of what a network samples.

    Args:
        decoder: The VAE, and whose latents they are; None: they are images, about [-1, 1].
        device: Where the VAE shall be.
    """
    if decoder is None:
        return quantise
    vae = VAE(decoder.vae).to(device)
    return partial(vae.pixels, convention=CONVENTIONS[decoder.convention])


def weights_directory(config: VAEConfig) -> Path | None:
    """Return the directory that a VAE's weights come from; None if they are random or on the hub.

    A directory that exists is taken before a hub id of the same name.

    Raises:
        FileNotFoundError: If the configuration names no hub id, nor a directory with the two files.
        ValueError: If a revision is asked of a directory.
    """
    return local_directory("VAE", config.weights, config.revision, _files(config), _EXAMPLE)


def _create(config: VAEConfig) -> nn.Module:
    """Build the autoencoder and its weights."""
    if config.weights == "random":
        return _random(config)
    whole = directory_of("VAE", config.weights, config.revision, _files(config), _EXAMPLE)
    directory = whole / config.place
    path = directory / CONFIG_FILE
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON, or damaged: {error}") from error
    kind = written.get("_class_name") if isinstance(written, dict) else None
    if kind != "AutoencoderKL":
        raise ValueError(f"{path} is of {kind}, not of an AutoencoderKL: give a VAE's directory")
    settings = {key: value for key, value in written.items() if not key.startswith("_")}
    autoencoder = _build(config, settings, seed=0)  # every weight is replaced
    weights = {
        _OLD_NAME.sub(lambda old: f"{old[1]}{_RENAMED[old[2]]}.", name): value
        for name, value in read_weights(directory / WEIGHTS_FILE).items()
    }
    check_keys(
        directory / WEIGHTS_FILE,
        f"the AutoencoderKL of its {CONFIG_FILE}",
        weights,
        autoencoder.state_dict(),
    )
    autoencoder.load_state_dict(weights)
    return autoencoder


def _random(config: VAEConfig) -> nn.Module:
    settings = ARCHITECTURE | {"latent_channels": config.latent_channels} | config.architecture
    stages = len(settings["block_out_channels"])
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
    }
    return _build(config, types | settings, seed=config.seed or 0)


def _build(config: VAEConfig, settings: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a network, on a generator of its own, and hold it against what is declared."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            autoencoder: Any = AutoencoderKL(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"an AutoencoderKL cannot be built from {dict(settings)} ({error}); mend the VAE's "
                "`architecture`, or the directory its weights come from"
            ) from error
    found = autoencoder.config
    declared = {
        "downsampling": (config.downsampling, 2 ** (len(found.block_out_channels) - 1)),
        "latent_channels": (config.latent_channels, found.latent_channels),
        "colours in": (3, found.in_channels),
        "colours out": (3, found.out_channels),
    }
    for name, (expected, actual) in declared.items():
        if expected != actual:
            raise ValueError(
                f"VAE {config.weights} has {name} {actual}, where {expected} is declared: change "
                "the configuration, or take another VAE"
            )
    return autoencoder


def _files(config: VAEConfig) -> list[str]:
    """Return the two files that a VAE is read from."""
    return [str(config.place / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
