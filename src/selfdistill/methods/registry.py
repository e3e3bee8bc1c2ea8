"""Names in the configuration, and what they build."""

from collections.abc import Mapping
from pathlib import Path

from selfdistill.methods.config import MethodConfig
from selfdistill.methods.dsd import DSD
from selfdistill.methods.method import Method
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dsd_vit import DSDViT

METHODS = {"dsd": DSD}
NETWORKS = {"dsd_vit": DSDViT}


def build_method(
    network: NetworkConfig, method: MethodConfig, weights: Mapping[str, Path] | None = None
) -> Method:
    """Build the network of a row and the method that trains it, with torch's current seed.

    Args:
        network: The architecture.
        method: The objective.
        weights: Files of the frozen networks that the loss needs, by name (`frozen_weights` of the
            method's configuration); None: a method that only samples.
    """
    trained = NETWORKS[network.root.name](network.root)
    return METHODS[method.root.name](trained, method.root, weights)
