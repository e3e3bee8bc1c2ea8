"""Names in the configuration, and what they build."""

from selfdistill.methods.config import MethodConfig
from selfdistill.methods.dsd import DSD
from selfdistill.methods.method import Method
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dsd_vit import DSDViT

METHODS = {"dsd": DSD}
NETWORKS = {"dsd_vit": DSDViT}


def build_method(network: NetworkConfig, method: MethodConfig) -> Method:
    """Build the network of a row and the method that trains it, with torch's current seed."""
    return METHODS[method.root.name](NETWORKS[network.root.name](network.root), method.root)
