"""Stable Diffusion's U-Net (Rombach et al., arXiv:2112.10752v2), by diffusers.

    z_t, time, prompt -> down, middle, up: residual blocks, and transformers that read -> noise

Its parameters have diffusers' names behind `unet.`; published ones load as they are. What stands in
its blocks can be recorded in one pass and mixed into another, as in DiT's (`networks.fusion`): the
branches that are added to the residual stream, of a residual block the second convolution's, of a
transformer's both attentions' and the MLP's; or the stream behind the block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from selfdistill.networks.fusion import Fusion, Places, Recorded, Site
from selfdistill.networks.prompts import Prompts
from selfdistill.networks.text_unet_config import TextUNetConfig
from selfdistill.networks.weights import check_keys, read_weights


class TextUNet(nn.Module):
    """Noise of latents at a discrete time: t in [0, 999], 999 the noisiest; labels are prompts.

    Attributes:
        prompts: What the labels say. It is no part of the state.
    """

    process: Literal["scaled_linear_chain"] = "scaled_linear_chain"
    null_class = -1  # the empty prompt, however many there are

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.config = config
        sizes = {
            "sample_size": config.latent_size,
            "in_channels": config.latent_channels,
            "out_channels": config.latent_channels,
        }
        settings = {"cross_attention_dim": 768, **sizes, **config.architecture}
        try:
            unet: Any = UNet2DConditionModel(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a UNet2DConditionModel cannot be built from {settings} ({error}); mend "
                "network.architecture"
            ) from error
        self.unet = unet
        self._check_blocks()
        self.prompts = Prompts(config.text, self.unet.config.cross_attention_dim)

    def load_published(self, path: Path) -> None:
        """Take published weights, with diffusers' keys.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, holds anything but weights, or is of another network.
        """
        weights = read_weights(path)
        title = f"a U-Net of {sum(p.numel() for p in self.unet.parameters()):,} parameters"
        check_keys(path, title, weights, self.unet.state_dict())
        self.unet.load_state_dict(weights)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of one sample's noise, (C, h, w)."""
        return self.config.latent_channels, self.config.latent_size, self.config.latent_size

    def layers(self) -> list[nn.Module]:
        """Return the blocks by resolution, what ranks cut the network into.

        They cannot be compiled, nor computed again: what is mixed comes in by hooks, which are only
        there while a pass lasts.
        """
        unet = self.unet
        found = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        return [block for block in found if block is not None]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of the transformers' attentions and MLPs, each (out, in)."""
        from diffusers.models.attention import BasicTransformerBlock

        blocks = (block for block in self.modules() if isinstance(block, BasicTransformerBlock))
        return [p for block in blocks for p in block.parameters() if p.ndim == 2]

    def forward(
        self, z_t: Tensor, t: Tensor, labels: Tensor, fusion: Fusion | None = None
    ) -> Tensor:
        """Predict the noise.

        Args:
            z_t: Noised latents, (N, C, h, w).
            t: Discrete times, (N,).
            labels: Numbers of prompts, or -1, the empty one, (N,).
            fusion: What of another pass to mix in.

        Returns:
            (N, C, h, w), float32.

        Raises:
            ValueError: If nobody has given prompts.
        """
        if fusion is None:
            return self._predict(z_t, t, labels)
        with self._passing(fusion.site, fusion.weight, fusion.recorded[0]):
            return self._predict(z_t, t, labels)

    def record(
        self, z_t: Tensor, t: Tensor, labels: Tensor, site: Site
    ) -> tuple[Tensor, list[Recorded]]:
        """Return what `forward` does, and what stood at a site, in the order of the pass."""
        with self._passing(site) as places:
            output = self._predict(z_t, t, labels)
        return output, [tuple(places.found)]

    def _predict(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.unet(z_t, t, self.prompts(labels), return_dict=False)[0].float()

    def _at(self, site: Site) -> list[nn.Module]:
        """Return the modules whose outputs stand at a site."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        found: list[nn.Module] = []
        for block in self.unet.modules():
            if isinstance(block, ResnetBlock2D):
                found += [block.conv2] if site == "branch" else [block]
            elif isinstance(block, BasicTransformerBlock):
                found += [block.attn1, block.attn2, block.ff] if site == "branch" else [block]
        return found

    def _check_blocks(self) -> None:
        """Refuse blocks of kinds that nothing would be mixed in."""
        blocks = {id(inner) for block in self._at("block") for inner in block.modules()}
        for level in self.layers():
            for name in ("resnets", "attentions"):
                for part in getattr(level, name, None) or ():
                    inner = getattr(part, "transformer_blocks", [part])
                    if unknown := [one for one in inner if id(one) not in blocks]:
                        raise ValueError(
                            f"network.architecture: a {type(level).__name__} has a "
                            f"{type(unknown[0]).__name__}, whose branches are not known here: take "
                            "blocks as Stable Diffusion v1.5 has them"
                        )

    @contextmanager
    def _passing(
        self, site: Site, weight: float | Tensor = 0.0, recorded: Recorded = ()
    ) -> Iterator[Places]:
        """Record, and mix, what stands at a site, for one pass; arguments are those of `Places`.

        Raises:
            ValueError: If there is no such site.
        """
        if site == "gated":
            raise ValueError("a U-Net's branches have no gates: take site branch, or block")
        places = Places(site, weight, recorded)

        def pass_through(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return places.pass_through(site, output)

        handles = [module.register_forward_hook(pass_through) for module in self._at(site)]
        try:
            yield places
        finally:
            for handle in handles:
                handle.remove()
