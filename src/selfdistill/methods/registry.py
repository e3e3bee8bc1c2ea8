"""From a row's configuration to its network and method."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfdistill.methods.config import MethodConfig
from selfdistill.methods.known import ADAPTING, METHODS, NETWORKS
from selfdistill.methods.method import Method
from selfdistill.networks.config import NetworkConfig


def build_method(
    network: NetworkConfig,
    method: MethodConfig,
    weights: Mapping[str, Path | None] | None = None,
    start: Path | None = None,
    teacher: Path | None = None,
) -> Method:
    """Build the network of a row and the method that trains it, with torch's current seed.

    Args:
        network: The architecture.
        method: The objective.
        weights: Files of the frozen networks that the loss needs, by name (`frozen_weights` of the
            method's configuration); None in place of a file: that network is built and not
            filled, for what only counts; None for all: a method that only samples.
        start: What the network starts as, as `methods.start.fill` takes it; None: as it is built.
        teacher: What it learns from, likewise; None: what it starts as.

    Raises:
        FileNotFoundError, ValueError: If a file is not there, or not the right one.
    """
    built = _filled(network, start)
    other = None if teacher is None else _filled(network, teacher)
    return method_around(built, method, weights, other)


def _filled(network: NetworkConfig, start: Path | None) -> nn.Module:
    built = build_network(network)
    if start is not None:
        from selfdistill.methods.start import fill

        fill(built, start)
    return built


def method_around(
    network: nn.Module,
    method: MethodConfig,
    weights: Mapping[str, Path | None] | None = None,
    teacher: nn.Module | None = None,
) -> Method:
    """Build the method that trains a network, which it takes over; see `build_method`."""
    taught = {} if teacher is None else {"teacher": teacher}
    return _class_around(network, method)(network, method.root, weights, **taught)


def method_of_released(
    network: nn.Module, method: MethodConfig, state: Mapping[str, Tensor]
) -> Method:
    """Build the method that samples what its `released` gave, around a network as built."""
    return _class_around(network, method).of_released(network, method.root, state)


def build_network(config: NetworkConfig) -> nn.Module:
    """Build a network, with torch's current seed."""
    return _named(NETWORKS[config.root.name])(config.root)


def code_of(network: str, method: str) -> tuple[str, str]:
    """Return the modules of a network and a method, by their names in the configuration."""
    return NETWORKS[network][0], _place_of(network, method)[0]


def _place_of(network: str, method: str) -> tuple[str, str]:
    return ADAPTING.get((method, network), METHODS[method])


def _class_around(network: Any, method: MethodConfig) -> Any:
    config = getattr(network, "config", None)  # what is not of ours has none
    return _named(_place_of(getattr(config, "name", ""), method.root.name))


def _named(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(importlib.import_module(module), name)
