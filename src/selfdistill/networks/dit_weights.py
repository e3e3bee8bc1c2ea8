"""Published weights of DiT, SiT and REPA's SiT: read as they are, written as they were.

`DiT-XL-2-256x256.pt` and `SiT-XL-2-256.pt` are state dicts. What their training scripts save, and
REPA's `last.pt`, holds an averaged network under "ema" beside the trained one, its optimizer and
the script's arguments. REPA's older files call the blocks behind its projectors `decoder_blocks`.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.files import atomic_path
from selfdistill.networks.dit import Transformer
from selfdistill.networks.weights import check_keys, read_tensors, read_weights

_LATER_BLOCK = re.compile(r"decoder_blocks\.(\d+)\.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def load_published(network: Transformer, path: Path) -> None:
    """Fill a network with published weights; of a training's file, with the averaged ones.

    Args:
        network: A DiT or SiT.
        path: A `.pt` of theirs, or a `.safetensors` with the same keys.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds anything but weights, or is of another network; it names
            the first few of the keys.
    """
    in_torch = path.suffix != ".safetensors"
    weights = read_tensors(path, _unpickle) if in_torch else read_weights(path)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    first = {int(found[1]) for key in weights if (found := _BLOCK.match(key))}
    weights = {
        _LATER_BLOCK.sub(lambda found: f"blocks.{int(found[1]) + len(first)}.", key): value
        for key, value in weights.items()
    }
    check_keys(path, _title(network), weights, network.state_dict())
    network.load_state_dict(weights)


def write_published(network: Transformer, path: Path) -> None:
    """Write a network's weights as a state dict that the public scripts load, in float32."""
    weights = {key: value.cpu().float() for key, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save(weights, temporary)


def _unpickle(path: Path) -> dict[str, Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):  # the script's arguments
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("ema", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return content[key]
    return content


def _title(network: Transformer) -> str:
    config = network.config
    return (
        f"a {type(network).__name__} of depth {config.depth}, width {config.width}, "
        f"latent_size {config.latent_size} and {config.out_channels} output channels"
    )
