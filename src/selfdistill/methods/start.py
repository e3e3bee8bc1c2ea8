"""What a network starts as: the network of another row's checkpoint, or published weights."""

from pathlib import Path

import torch
from torch import nn

from selfdistill.files import sha256_once
from selfdistill.methods.checkpoint import Checkpoint


def fill(network: nn.Module, start: Path) -> None:
    """Give a network the weights that it starts with.

    Args:
        network: As built.
        start: A checkpoint's directory, of which the network that samples is taken; or a file of
            published weights.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is damaged, or of another network.
    """
    if not start.is_dir():
        load = getattr(network, "load_published", None)
        if load is None:
            raise ValueError(f"{start}: there are no published weights of {type(network).__name__}")
        load(start)
        return
    released = Checkpoint.open(start).load(torch.device("cpu")).released()
    try:
        network.load_state_dict(released.state_dict(), assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"{start}: its network is not the one that the row starts with: {error}"
        ) from None


def digest_of(start: Checkpoint | Path) -> str:
    """Return the sha256 of the weights that a network starts with."""
    return start.about["sha256"] if isinstance(start, Checkpoint) else sha256_once(start)
