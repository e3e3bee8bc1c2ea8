"""A released checkpoint: the network that samples alone, in a directory that others can use.

    from selfdistill.methods.release import Release
    dsd = Release.open("data/08_reporting/dsd_b/release")
    x = dsd.sample([207, 88]); z = dsd.encode(x); x = dsd.decode(z)

The directory holds

    weights.safetensors   the network that samples; DSD's encodes and decodes too. Keys of DiT and
                          SiT are those of the published weights, those of Stable Diffusion's
                          U-Net have `unet.` before them
    config.json           what builds it, the default sampling, the classes, where it comes from,
                          and the VAE that decodes, if its latents are not its own
    README.md             the model card

It needs this package and nothing else of the project; one that reads prompts also needs the text
encoder that `config.json` names, with its sha256. No pickle is read or written here.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfdistill.data.pixels import dequantise, quantise
from selfdistill.diffusion.config import SolverConfig
from selfdistill.draws import Draws
from selfdistill.files import atomic_path, publish_directory, sha256_of, temporary_name, write_json
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.config import MethodConfig
from selfdistill.methods.method import Autoencoder, Method
from selfdistill.methods.registry import build_network, method_of_released
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.dsd_vit import normalize_latent
from selfdistill.networks.prompts import text_digest
from selfdistill.networks.text_unet_config import TextConfig
from selfdistill.networks.vae import pixels_of
from selfdistill.networks.vae_config import Decoder

_WEIGHTS, _CONFIG, _CARD = "weights.safetensors", "config.json", "README.md"
_FORMAT = 2
_ORIGIN = ("nimg", "fingerprint", "inputs", "code")  # of a checkpoint
_BATCH_SIZE = 64  # images at once; changes memory, not the images

Images = np.ndarray | Tensor


@dataclass(frozen=True)
class Release:
    """A released network: a handle whose weights are read when they are first needed.

    Attributes:
        path: The directory.
        config: The content of its `config.json`.
        device: Where the network is, or will be.
    """

    path: Path
    config: dict[str, Any]
    device: torch.device

    @classmethod
    def write(
        cls,
        path: str | Path,
        checkpoint: Checkpoint,
        *,
        class_names: Sequence[str],
        sampling: SolverConfig,
        card: str,
        decoder: Decoder | None = None,
    ) -> Self:
        """Write the directory, whole or not at all; the same checkpoint gives the same bytes.

        Args:
            path: The directory; a release that is there is replaced.
            checkpoint: A finished checkpoint.
            class_names: Names of the classes, by label.
            sampling: What `sample` does unless it is told otherwise.
            card: The model card, Markdown.
            decoder: What makes images of its samples; None: they are images.

        Raises:
            ValueError: If the checkpoint is damaged, or another directory, which is
                not empty, is in the way.
        """
        path = Path(path)
        if path.exists() and any(path.iterdir()) and not (path / _CONFIG).is_file():
            raise ValueError(f"{path} is there and is no release; take another path")
        released = checkpoint.load(torch.device("cpu")).released()
        weights = {name: value.contiguous() for name, value in released.state_dict().items()}
        unfinished = temporary_name(path)
        try:
            with atomic_path(unfinished / _WEIGHTS) as temporary:
                save_file(weights, temporary)
            with atomic_path(unfinished / _CARD) as temporary:
                temporary.write_text(card, encoding="utf-8")
            known = checkpoint.about
            network = dict(known["network"])
            if "text" in network:  # whoever opens it shall read prompts by the same encoder
                text = TextConfig.model_validate(network["text"])
                if text.weights != "random":
                    network["text"] = {**network["text"], "weights_sha256": text_digest(text)}
            config = {
                "format": _FORMAT,
                "network": network,
                "method": known["method"],
                "sampling": sampling.model_dump(
                    mode="json", include=set(SolverConfig.model_fields)
                ),
                "decoder": None if decoder is None else decoder.model_dump(mode="json"),
                "class_names": [] if "text" in network else list(class_names),
                "checkpoint": known["sha256"],
                **{name: known[name] for name in _ORIGIN if name in known},
                "sha256": sha256_of(unfinished / _WEIGHTS),
            }
            write_json(unfinished / _CONFIG, config)
            publish_directory(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls.at(path)

    @classmethod
    def open(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Open a release and load its network.

        Args:
            path: The directory.
            device: Where the network shall be.

        Raises:
            FileNotFoundError: If a file is missing; the message names it.
            ValueError: If a file is damaged, or of another format; the message names it.
        """
        release = cls.at(path, device)
        release.method  # noqa: B018  # load the weights here and now
        return release

    @classmethod
    def at(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Return a handle of a release, without loading the weights; otherwise as `open`."""
        path = Path(path)
        for name in (_CONFIG, _WEIGHTS):
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"{path / name} is missing: no release here, or not the whole of one; run the "
                    "export stage, or copy the directory again"
                )
        try:
            config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path / _CONFIG} is damaged: {error}; copy the directory again"
            ) from None
        if config.get("format") != _FORMAT:
            raise ValueError(
                f"{path / _CONFIG} has format {config.get('format')!r}, this selfdistill reads "
                f"{_FORMAT}: install the selfdistill of the release, or export the row again"
            )
        return cls(path, config, torch.device(device))

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.path / _CARD).read_text(encoding="utf-8")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""
        return self.config["class_names"]

    @property
    def sampling(self) -> SolverConfig:
        """What `sample` does unless it is told otherwise."""
        return SolverConfig.model_validate(self.config["sampling"])

    @cached_property
    def method(self) -> Method:
        """The method, whose every network is the released one."""
        file = self.path / _WEIGHTS
        if (found := sha256_of(file)) != self.config["sha256"]:
            raise ValueError(
                f"{file} is damaged: sha256 {found}, {_CONFIG} says {self.config['sha256']}; copy "
                "the directory again, or export the row again"
            )
        with torch.random.fork_rng(devices=[]):  # of the initial weights, which nobody will see
            network = build_network(NetworkConfig.model_validate(self.config["network"]))
        chosen = MethodConfig.model_validate(self.config["method"])
        method = method_of_released(network, chosen, load_file(file))
        if getattr(method, "average", None) is not None:
            method.network = method.average  # one copy is enough
        return method.to(self.device).eval().requires_grad_(False)

    @cached_property
    def _to_pixels(self) -> Callable[[Tensor], Tensor]:
        written = self.config["decoder"]
        decoder = None if written is None else Decoder.model_validate(written)
        return pixels_of(decoder, self.device)

    def encode(self, images: Images) -> Tensor:
        """Return the latents of images.

        Args:
            images: uint8, (N, H, W, 3); or floats in [-1, 1], (N, 3, H, W).

        Returns:
            z, (N, L, C), float32, on the release's device.

        Raises:
            ValueError: If the images are neither, or not of the network's resolution, or the
                network has no encoder.
        """
        return self._in_batches(self._autoencoder.encode, self._as_network_sees(images))

    def decode(self, z: Images) -> np.ndarray:
        """Return the images of latents.

        Args:
            z: Clean latents, (N, L, C), as `encode` returns them.

        Returns:
            (N, H, W, 3), uint8.

        Raises:
            ValueError: If the latents have another shape.
        """
        return self._in_batches(self._decode, self._as_latents(z, "latents")).cpu().numpy()

    def sample(
        self,
        labels: Sequence[int] | Sequence[str] | np.ndarray | Tensor,
        *,
        seed: int = 0,
        eps: Images | None = None,
        **changes: Any,
    ) -> np.ndarray:
        """Return new images; image i of a seed is the row's sample i if it has the same class.

        Args:
            labels: Class indices, (N,); for a network that reads, prompts.
            seed: Seed of the noise, in [0, 2^32).
            eps: The noise itself, (N, *noise_shape()) of the method; None: that of `noise`.
            changes: What to do otherwise than `sampling` says, e.g. `guidance=3.0`.

        Returns:
            (N, H, W, 3), uint8.

        Raises:
            ValueError: If a label, the noise or a change cannot be.
        """
        solver = SolverConfig.model_validate({**self.config["sampling"], **changes})
        classes = self._as_labels(labels)
        noise = self.noise(len(classes), seed=seed) if eps is None else self._as_latents(eps, "eps")
        if len(noise) != len(classes):
            raise ValueError(f"{len(classes)} labels and {len(noise)} eps; give one for each image")

        numbers = torch.arange(len(classes))

        def images(eps: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
            return self._to_pixels(self.method.sample(eps, labels, solver, Draws(seed, numbers)))

        return self._in_batches(images, noise, classes, numbers).cpu().numpy()

    def noise(self, num: int, *, seed: int = 0) -> Tensor:
        """Return the noise of the images 0 to num - 1, as the row's samples have it.

        Args:
            num: Number of images.
            seed: Seed, in [0, 2^32).

        Returns:
            (num, L, C) of DSD's latents, (num, C, h, w) of a VAE's.
        """
        draws = Draws(seed, torch.arange(num, device=self.device))
        return draws.normal("sample", *self.method.noise_shape())

    def interpolate(self, start: Tensor, end: Tensor, num: int) -> Tensor:
        """Return latents on the straight line between two, normalised if the network's own are.

        Args:
            start: One image's latent, (L, C) of DSD, (C, h, w) of a VAE.
            end: Another's.
            num: How many, both ends included.

        Returns:
            (num, *start.shape).
        """
        shares = torch.linspace(0, 1, num, device=start.device)
        z = torch.lerp(start, end, shares.view(-1, *[1] * start.ndim))
        normalized = self.config["network"].get("normalize_latent", False)
        return normalize_latent(z) if normalized else z

    @property
    def _autoencoder(self) -> Autoencoder:
        if not isinstance(self.method, Autoencoder):
            raise ValueError(
                f"{self.path} is of a network that only samples: it does not encode, nor decode"
            )
        return self.method

    def _decode(self, z: Tensor) -> Tensor:
        return quantise(self._autoencoder.decode(z))

    @torch.no_grad()
    def _in_batches(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        parts = zip(*(tensor.split(_BATCH_SIZE) for tensor in inputs), strict=True)
        return torch.cat([function(*(tensor.to(self.device) for tensor in part)) for part in parts])

    def _as_network_sees(self, images: Images) -> Tensor:
        x, side = _as_tensor(images), self.config["network"]["resolution"]
        shape = list(x.shape)
        if x.dtype == torch.uint8 and shape[1:] == [side, side, 3] and len(x):
            return dequantise(x)
        if x.is_floating_point() and shape[1:] == [3, side, side] and len(x):
            if not (x.abs() <= 1).all():
                raise ValueError(
                    "images in floating point must be in [-1, 1], got "
                    f"[{float(x.min()):.4g}, {float(x.max()):.4g}]; give uint8, or x / 127.5 - 1"
                )
            return x.float()
        raise ValueError(
            f"images are {x.dtype} {shape}; this network takes uint8 [N, {side}, {side}, 3], or "
            f"floats in [-1, 1] [N, 3, {side}, {side}]: crop and resize them first"
        )

    def _as_latents(self, values: Images, name: str) -> Tensor:
        z, shape = _as_tensor(values), list(self.method.noise_shape())
        if not z.is_floating_point() or list(z.shape[1:]) != shape or not len(z):
            raise ValueError(
                f"{name} are {z.dtype} {list(z.shape)}; this network takes floats {['N', *shape]}"
            )
        return z.float()

    def _as_labels(self, labels: Sequence[int] | Sequence[str] | np.ndarray | Tensor) -> Tensor:
        if "text" in self.config["network"]:
            prompts = list(labels)
            if not prompts or not all(isinstance(one, str) for one in prompts):
                raise ValueError(
                    f"this network reads: labels must be a list of texts, got {labels}"
                )
            self.method.name_classes([" ".join(one.split()) for one in prompts])
            return torch.arange(len(prompts))
        classes, num = _as_tensor(labels), len(self.class_names)
        integers = classes.ndim == 1 and not classes.is_floating_point()
        if not integers or not len(classes) or classes.min() < 0 or classes.max() >= num:
            raise ValueError(f"labels must be a list of integers from 0 to {num - 1}, got {labels}")
        return classes.long()


def _as_tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
