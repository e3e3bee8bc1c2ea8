"""50,000 images: noise and class are functions of the image's number alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfdistill.data.shards import Shards
from selfdistill.distributed import World
from selfdistill.distributed_config import DistributedConfig
from selfdistill.draws import Draws
from selfdistill.files import fingerprint
from selfdistill.methods.checkpoint import Checkpoint
from selfdistill.methods.method import Method
from selfdistill.methods.registry import build_network, code_of
from selfdistill.methods.start import digest_of, fill
from selfdistill.networks.config import NetworkConfig
from selfdistill.networks.prompts import text_digest
from selfdistill.networks.vae import pixels_of
from selfdistill.networks.vae_config import Decoder
from selfdistill.pipelines.sample.config import GuideConfig, SampleConfig
from selfdistill.pipelines.sample.output import Images, Output, make_shards, write_share


def generate_samples(
    checkpoint: Checkpoint,
    images: Shards,
    config: SampleConfig,
    distributed: DistributedConfig,
    scratch: Path,
    decoder: Decoder | None = None,
    guide: Checkpoint | Path | None = None,
) -> Shards:
    """Return a checkpoint's samples, as many as `config` asks for.

    Args:
        checkpoint: Trained weights.
        images: The real images, for their size and the names of the classes.
        config: Solver and number of images.
        distributed: The machine.
        scratch: Where the unfinished shards are kept.
        decoder: What makes images of the samples; None: they are images.
        guide: The network that guides; None: the checkpoint's own.
    """
    decoding = {} if decoder is None else {"decoder": decoder.model_dump(mode="json")}
    settings = config.model_dump(mode="json")
    network = NetworkConfig.model_validate(checkpoint.about["network"]).root
    text = getattr(network, "text", None)  # of a network that reads prompts
    reading = {} if text is None else {"text": text_digest(text)}
    guiding = {} if guide is None else {"guide_sha256": digest_of(guide)}
    output = Output(
        settings={
            **config.model_dump(mode="json", exclude={"batch_size"}),
            "classes": fingerprint(images.class_names),
            **decoding,
            **reading,
            **guiding,
        },
        side=images.shape[0],
        num_images=config.total_images,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        class_names=images.class_names,
        modules=_modules_of(guide, config.guide),
        about={
            "sample": settings,
            "nfe": config.num_evaluations,
            **decoding,
            **reading,
            **guiding,
        },
    )
    spec = {"sample": settings, "class_names": images.class_names, **decoding}
    if guide is not None:
        spec["guide"] = str(guide.path if isinstance(guide, Checkpoint) else guide)
    return make_shards(run, checkpoint, output, spec, distributed, scratch)


def run(spec: Path, world: World) -> None:
    """Generate this rank's share of the missing shards."""

    def start(values: dict[str, Any], method: Method) -> Callable[[range], Images]:
        config = SampleConfig.model_validate(values["sample"])
        decoder = Decoder.model_validate(values["decoder"]) if "decoder" in values else None
        names = values["class_names"]
        method.name_classes(names)
        if config.guide is not None:
            method.take_guide(_network_of(Path(values["guide"]), config.guide, world))
        to_pixels = pixels_of(decoder, world.device)

        def make(numbers: range) -> Images:
            index = torch.tensor(numbers)
            labels = index % config.num_images % len(names)
            draws = Draws(config.seed, index.to(world.device))
            eps = draws.normal("sample", *method.noise_shape())
            x0 = method.sample(eps, labels.to(world.device), config, draws)
            return Images(to_pixels(x0), labels.tolist(), [f"{number:08d}" for number in numbers])

        return make

    write_share(spec, world, start)


def _modules_of(guide: Checkpoint | Path | None, config: GuideConfig | None) -> Sequence[str]:
    """Return the code of the network that guides."""
    if isinstance(guide, Checkpoint):
        return code_of(guide.about["network"]["name"], guide.about["method"]["name"])
    if config is None or config.network is None:
        return ()
    return code_of(config.network.root.name, "diffusion")[:1]


def _network_of(path: Path, guide: GuideConfig, world: World) -> nn.Module:
    """Return the network that guides, on the rank's device."""
    if guide.network is None:
        return Checkpoint.open(path).load(world.device).released()
    network = build_network(guide.network)
    fill(network, path)
    return network.to(world.device).eval().requires_grad_(False)
