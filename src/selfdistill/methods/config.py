"""All methods by name. Importable without torch, so that the registry stays quick.

Nothing else stands here: a row is made anew when the configuration of its own method changes, not
when another one joins the list.
"""

from typing import Annotated

from pydantic import Field, RootModel

from selfdistill.methods.diffusion_config import DiffusionConfig
from selfdistill.methods.dsd_config import DSDConfig
from selfdistill.methods.progressive_config import ProgressiveConfig
from selfdistill.methods.sid_config import SiDConfig
from selfdistill.methods.ssd_config import SSDConfig

# Titles of the papers, by the name of their tables.
PAPERS = {
    "dsd": "DSD: Diffusion as Self-Distillation (arXiv:2511.14716)",
    "ssd": "SSD and iSSD: Diffusion Model is Effectively Its Own Teacher (CVPR 2025)",
    "sida": "SiD, SiDA and SiD2A: Adversarial Score identity Distillation (arXiv:2410.14919)",
}

AnyMethod = Annotated[
    DSDConfig | DiffusionConfig | ProgressiveConfig | SSDConfig | SiDConfig,
    Field(discriminator="name"),
]


class MethodConfig(RootModel[AnyMethod]):
    """Any method, told apart by its `name`."""

    model_config = {"frozen": True}
