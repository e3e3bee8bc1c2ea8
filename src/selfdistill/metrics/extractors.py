"""Feature extractors by name: what turns images into the features that metrics are made of."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from selfdistill.metrics.config import Profile
from selfdistill.metrics.definitions import DEFINITIONS
from selfdistill.metrics.full_precision import full_precision
from selfdistill.metrics.metric import ExtractorName
from selfdistill.metrics.tiny import TinyExtractor
from selfdistill.networks.dinov2 import load_dinov2, resize_pil, resize_torch
from selfdistill.networks.inception import fold, load_inception


class Extractor(Protocol):
    """Images to features."""

    def __call__(self, images: np.ndarray, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the features of a batch.

        Args:
            images: uint8, (N, H, W, 3), of any size.
            taps: Names of the wanted outputs of the network.

        Returns:
            By tap (N, D) on the extractor's device.
        """
        ...


class InceptionExtractor:
    """Inception-v3 of 2015-12-05, as ADM's evaluator uses it.

    Args:
        weights: A file that `networks.inception.load_inception` reads.
        profile: "exact" or "fast", batch norm folded and channels last.
        device: Where it computes; in float32 without TF32, whatever the device's settings are.
    """

    def __init__(self, weights: Path, profile: Profile, device: torch.device) -> None:
        network = load_inception(weights)
        self._network = (fold(network) if profile == "fast" else network).to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the taps of `networks.inception.TAPS` that are wanted."""
        with full_precision():
            return self._network(_moved(images, self._device), taps)


class DinoV2Extractor:
    """DINOv2 ViT-L/14, the extractor of FD-DINOv2 (Stein et al., 2023, arXiv:2306.04675v2).

    Args:
        weights: A file that `networks.dinov2.load_dinov2` reads.
        resize: "torch": EDM2's bicubic with antialias in float32; "pil": dgm-eval's, in uint8.
        device: Where it computes, in float32 without TF32.
    """

    def __init__(
        self, weights: Path, resize: Literal["torch", "pil"], device: torch.device
    ) -> None:
        self._network = load_dinov2(weights).to(device)
        self._device, self._resize = device, resize

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the class token of the last block as "cls", (N, 1024)."""
        pixels = _moved(images, self._device)
        resized = resize_pil(pixels) if self._resize == "pil" else resize_torch(pixels)
        with full_precision():
            return {"cls": self._network(resized)}


EXTRACTORS: dict[ExtractorName, Callable[[Path, Profile, torch.device], Extractor]] = {
    "inception_2015": InceptionExtractor,
    "dinov2": lambda weights, _, device: DinoV2Extractor(weights, "torch", device),
    "dinov2_pil": lambda weights, _, device: DinoV2Extractor(weights, "pil", device),
    "clean": lambda weights, _, device: _clean_fid(weights, "clean", device),
    "legacy_tensorflow": lambda weights, _, device: _clean_fid(
        weights, "legacy_tensorflow", device
    ),
    "tiny": lambda *_: TinyExtractor(),
}


def build_extractor(
    name: ExtractorName, weights: Mapping[str, Path], profile: Profile, device: torch.device
) -> Extractor:
    """Make an extractor.

    Args:
        name: Key in `EXTRACTORS`.
        weights: Files by the names of the weights in `DEFINITIONS`, checked already.
        profile: Of the networks that have several.
        device: Where it computes.

    Raises:
        ValueError: If a file does not hold such a network.
    """
    taken = DEFINITIONS[name].weights
    return EXTRACTORS[name](weights[taken.name] if taken else Path(), profile, device)


def _clean_fid(
    weights: Path, mode: Literal["clean", "legacy_tensorflow"], device: torch.device
) -> Extractor:
    from selfdistill.metrics.clean_fid import CleanFidExtractor  # it brings much along

    return CleanFidExtractor(weights, mode, device)


def _moved(images: np.ndarray, device: torch.device) -> Tensor:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 (N, H, W, 3), got {images.dtype} {list(images.shape)}"
        )
    pixels = torch.from_numpy(images)
    return pixels.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pixels
