"""All networks by name. Importable without torch, so that the registry stays quick.

Nothing else stands here: a row is made anew when the configuration of its own network changes, not
when another one joins the list.
"""

from typing import Annotated

from pydantic import Field, RootModel

from selfdistill.networks.dit_config import DiTConfig, SiTConfig
from selfdistill.networks.dsd_vit_config import DSDViTConfig
from selfdistill.networks.edm_config import ADMConfig, DDPMppConfig, EDM2Config
from selfdistill.networks.text_unet_config import TextUNetConfig

AnyNetwork = Annotated[
    DSDViTConfig | DiTConfig | SiTConfig | TextUNetConfig | DDPMppConfig | ADMConfig | EDM2Config,
    Field(discriminator="name"),
]


class NetworkConfig(RootModel[AnyNetwork]):
    """Any network, told apart by its `name`."""

    model_config = {"frozen": True}
