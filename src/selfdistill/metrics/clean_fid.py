"""The cross-check: clean-fid's own resize and network, on the images that we measure.

"On Aliased Resizing and Surprising Subtleties in GAN Evaluation", Parmar et al., 2022,
arXiv:2104.11222v3. `clean` resizes by PIL with antialias; `legacy_tensorflow` as the TensorFlow
graph does. Only the distance is taken by our own code.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor

from selfdistill.metrics.full_precision import full_precision

_FILE = "inception-2015-12-05.pt"  # the only name that clean-fid looks for


class CleanFidExtractor:
    """Features as `cleanfid.fid` takes them from image files.

    Args:
        weights: The TorchScript file of Inception-v3. It is code: only a file that has been
            accepted by its sha256 may come here.
        mode: clean-fid's mode.
        device: Where it computes, in float32 without TF32.

    Raises:
        ValueError: If the file has another name than clean-fid looks for.
    """

    def __init__(
        self, weights: Path, mode: Literal["clean", "legacy_tensorflow"], device: torch.device
    ) -> None:
        if weights.name != _FILE:
            raise ValueError(f"{weights}: clean-fid finds its network under the name {_FILE} only")
        resize_inside = mode == "legacy_tensorflow"
        network = InceptionV3W(str(weights.parent), download=False, resize_inside=resize_inside)
        self._network = network.to(device).eval()
        self._resize, self._device = build_resizer(mode), device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, taps: Collection[str]) -> dict[str, Tensor]:
        """Return "pool_3", (N, 2048), of uint8 images (N, H, W, 3)."""
        resized = np.stack([self._resize(image) for image in images])
        x = torch.from_numpy(resized).to(self._device, torch.float32).permute(0, 3, 1, 2)
        with full_precision():
            return {"pool_3": self._network(x)}
