"""What defines the extractors: weights and resize. Every command reads this: nothing heavy.

A metric is named after its network, so an extractor takes these files and no others: any other
network under the name of FID would be another number. The catalog says where they are fetched from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.files import sha256_once
from selfdistill.metrics.metric import ExtractorName, Need


@dataclass(frozen=True)
class Weights:
    """A network as it was published.

    Attributes:
        name: Catalog entry `weights.<name>`.
        sha256: The files that hold it, each with its hex sha256.
    """

    name: str
    sha256: Mapping[str, str]


_INCEPTION = Weights(
    "inception_2015",
    {
        "weights-inception-2015-12-05-6726825d.pth":
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "classify_image_graph_def.pb":
            "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6",
    },
)  # fmt: skip
_INCEPTION_TORCHSCRIPT = Weights(
    "inception_2015_torchscript",
    {
        "inception-2015-12-05.pt":
            "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    },
)  # fmt: skip
_DINOV2 = Weights(
    "dinov2_vitl14",
    {
        "dinov2_vitl14_pretrain.pth":
            "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Definition:
    """What an extractor's features depend on.

    Attributes:
        weights: The published network; None: it has none, or makes its own.
        resize: The rule that brings images of any size to the size of the first layer.
    """

    weights: Weights | None
    resize: str


DEFINITIONS: dict[ExtractorName, Definition] = {
    "inception_2015": Definition(_INCEPTION, "TF1 bilinear to 299x299, no antialias"),
    "dinov2": Definition(_DINOV2, "bicubic to 224x224, antialias, float32 (EDM2)"),
    "dinov2_pil": Definition(_DINOV2, "bicubic to 224x224, antialias, uint8 by PIL (dgm-eval)"),
    "clean": Definition(_INCEPTION_TORCHSCRIPT, "clean-fid: PIL bicubic to 299x299, antialias"),
    "legacy_tensorflow": Definition(
        _INCEPTION_TORCHSCRIPT, "clean-fid: the TorchScript's own bilinear to 299x299"
    ),
    "tiny": Definition(None, "adaptive average to 32x32"),
}


# Published reference files, by their sha256: statistics of these features by this resize.
REFERENCES = {
    "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758":
        "VIRTUAL_imagenet256_labeled.npz",
}  # fmt: skip

# Those whose sha256 nobody here has seen are known by the names that they are published under, and
# results say so: ADM's, EDM's and EDM2's.
REFERENCES_BY_NAME = frozenset({
    "VIRTUAL_imagenet64_labeled.npz",
    "VIRTUAL_imagenet512.npz",
    "cifar10-32x32.npz",
    "ffhq-64x64.npz",
    "afhqv2-64x64.npz",
    "imagenet-64x64.npz",
    "img512.pkl",
})  # fmt: skip


def files_of(published: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return what a result says of each reference file, of its "published"."""
    return [published, *published.get("further", ())] if published else []


def title_of(published: Mapping[str, Any] | None) -> str:
    """Return the names of the reference files in a result's "published"; empty if there are none.

    Of one that is known by its name alone, and of one that is not known, its sha256 is said.
    """
    titles = []
    for file in files_of(published):
        name, digest = file["file"], file["sha256"][:8]
        by_name = f"{name} (by its name, {digest})" if file.get("by_name") else name
        titles.append(str(by_name or f"an unknown file, {digest}"))
    return " and ".join(titles)


def weights_of(needs: Iterable[Need]) -> list[str]:
    """Return the names of the weights that the needs' extractors take, sorted."""
    all_weights = (DEFINITIONS[need.extractor].weights for need in needs)
    return sorted({weights.name for weights in all_weights if weights})


def accepted_sha256(extractor: ExtractorName, files: Mapping[str, Path]) -> str | None:
    """Return the sha256 of an extractor's weights; None if it takes none.

    Args:
        extractor: Key of `DEFINITIONS`.
        files: Files by the names of the weights.

    Raises:
        ValueError: If the file does not hold the network that defines the extractor.
    """
    weights = DEFINITIONS[extractor].weights
    if weights is None:
        return None
    file = files[weights.name]
    found = sha256_once(file)
    if found not in weights.sha256.values():
        known = " or ".join(f"{name} ({sha[:8]}...)" for name, sha in weights.sha256.items())
        raise ValueError(
            f"{file} (sha256 {found[:8]}...) is not the network that defines the extractor "
            f"{extractor!r}; that is {known}"
        )
    return found
