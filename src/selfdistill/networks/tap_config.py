"""Where a transformer that denoises says whether data are real."""

from typing import Annotated, Literal

from pydantic import Field

from selfdistill.base_config import Config, Size


class ChannelsTap(Config):
    """The mean over the channels of the residual stream: a map of logits, as SiDA's of a U-Net.

    Attributes:
        block: Blocks that come before, from 1 to all of them; of DSD's ViT the DiT layer is the
            last one.
    """

    kind: Literal["channels"]
    block: Size


class TokensTap(Config):
    """The mean over the tokens behind the last adaptive norm: as many logits as channels."""

    kind: Literal["tokens"]


TapConfig = Annotated[ChannelsTap | TokensTap, Field(discriminator="kind")]
