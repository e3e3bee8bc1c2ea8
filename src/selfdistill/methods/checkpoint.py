"""A finished checkpoint: weights in safetensors, and a JSON that says what they are.

No pickle is read or written here.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfdistill.files import atomic_path, sha256_of, write_json
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.method import Method
from selfdistill.methods.registry import build_method
from selfdistill.networks.config import NetworkConfig

_WEIGHTS, _ABOUT, _CURVES = "weights.safetensors", "checkpoint.json", "curves.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights on disk: a handle.

    Attributes:
        path: The directory.
        about: The content of its `checkpoint.json`: network, method, nimg, sha256 and origin.
    """

    path: Path
    about: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a finished checkpoint.

        Raises:
            FileNotFoundError: If there is none; the message names the path.
        """
        if not (path / _ABOUT).is_file() or not (path / _WEIGHTS).is_file():
            raise FileNotFoundError(f"{path}: no finished checkpoint here; run the train stage")
        return cls(path, json.loads((path / _ABOUT).read_text(encoding="utf-8")))

    @classmethod
    def write(
        cls,
        path: Path,
        method: Method,
        *,
        network_config: NetworkConfig,
        method_config: MethodConfig,
        about: dict[str, Any],
        curves: Path | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Write weights and curves first, then the JSON; whoever sees the JSON sees them all.

        Args:
            path: The directory.
            method: The method; all of its networks are kept but those that only training needs.
            network_config: What builds the network.
            method_config: What builds the method.
            about: Origin: parameters, images seen, inputs, code.
            curves: File of the loss curves.
            weights: The method's state, where ranks hold parts of it; None: this process has all.
        """
        state = method.state_dict() if weights is None else weights
        tensors = {name: value.cpu().contiguous() for name, value in method.kept(state).items()}
        with atomic_path(path / _WEIGHTS) as temporary:
            save_file(tensors, temporary)
        if curves is not None:
            shutil.copyfile(curves, path / _CURVES)
        record = {
            "network": network_config.model_dump(mode="json"),
            "method": method_config.model_dump(mode="json"),
            **about,
            "sha256": sha256_of(path / _WEIGHTS),
        }
        write_json(path / _ABOUT, record)
        return cls.open(path)

    @property
    def curves(self) -> Path:
        """The file of the loss curves."""
        return self.path / _CURVES

    def load(self, device: torch.device) -> Method:
        """Build the method with these weights, in evaluation mode.

        Raises:
            ValueError: If the weights are not those that were written (sha256).
        """
        if (found := sha256_of(self.path / _WEIGHTS)) != self.about["sha256"]:
            raise ValueError(
                f"{self.path / _WEIGHTS} is damaged: sha256 {found}, "
                f"{_ABOUT} says {self.about['sha256']}; train the row again"
            )
        method = build_method(
            NetworkConfig.model_validate(self.about["network"]),
            MethodConfig.model_validate(self.about["method"]),
        )
        method.load_state_dict(load_file(self.path / _WEIGHTS), assign=True)
        return method.to(device).eval().requires_grad_(False)
