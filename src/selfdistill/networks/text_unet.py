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

_BRANCHES = {"ResnetBlock2D": ("conv2",), "BasicTransformerBlock": ("attn1", "attn2", "ff")}
"""Names of diffusers' blocks, and of what is added to their residual streams."""


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
        return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return the weights of the transformers' attentions and MLPs, each (out, in)."""
        blocks = (block for block in self.modules() if _kind(block) == "BasicTransformerBlock")
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

        blocks = [block for block in self.unet.modules() if _kind(block) in _BRANCHES]
        if site == "branch":
            blocks = [getattr(block, name) for block in blocks for name in _BRANCHES[_kind(block)]]
        handles = [block.register_forward_hook(pass_through) for block in blocks]
        try:
            yield places
        finally:
            for handle in handles:
                handle.remove()


def _kind(module: nn.Module) -> str:
    return type(module).__name__
