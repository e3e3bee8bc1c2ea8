"""What is done to the repeated layers of networks, for speed or for memory."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from selfdistill.distributed import World
from selfdistill.methods.method import Method


def recompute_layers(method: Method) -> None:
    """Let the backward pass compute the activations inside each layer again.

    Of all networks: SiD's gradients pass through frozen ones.

    Memory then grows with one layer's activations, not with all, for a third more computation. What
    a layer drops is drawn again as it was, so the gradient is the same to the bit. Layers that are
    compiled are compiled before.
    """
    for network in method.children():
        for layer in layers_of(network):
            drops: Any = getattr(layer, "dropout", 0)
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=drops > 0
            )


def compile_layers(method: Method) -> None:
    """Compile the layers of every network of the method, one by one.

    They share one compiled graph a shape, which takes seconds where a whole network takes minutes.
    No shape is made symbolic when another one comes, such as the probe's: what a layer computes
    must not depend on what it computed before.
    """
    for network in method.children():
        for layer in layers_of(network):
            layer.forward = torch.compile(layer.forward, dynamic=False)


def layers_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that a network names itself, if it does."""
    layers = getattr(network, "layers", None)
    yield from layers() if callable(layers) else ()


def place_networks(joint: nn.Module, method: Method, world: World) -> None:
    """Bring the networks to the device; cut those that name layers among the ranks, if asked to.

    They are the large ones, trained, averaged or frozen. What names no layers, such as the network
    of a perceptual loss, stays whole on each rank.

    Args:
        joint: Around the method; all that computes with its networks does so in its `forward`.
        method: The method.
        world: This rank.

    Raises:
        ValueError: If a network that is trained names no layers.
    """
    layers, whole = [], []
    for name, network in method.named_children():
        if found := list(layers_of(network)):
            layers += found
        elif world.shards and name in method.turns():
            raise ValueError(
                f"strategy fsdp cuts networks by their layers, and {type(network).__name__} names "
                "none: give it a method layers(), or set distributed.strategy to ddp"
            )
        else:
            whole.append(network)
    world.place(joint, layers, whole)
