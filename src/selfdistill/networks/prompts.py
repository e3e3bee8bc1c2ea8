"""Prompts by number, and the frozen CLIP text encoder that reads them (arXiv:2103.00020).

transformers is imported when prompts are given, not before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from selfdistill.draws import Draws
from selfdistill.files import fingerprint, sha256_once
from selfdistill.networks.hub import directory_of, local_directory
from selfdistill.networks.text_unet_config import TextConfig
from selfdistill.networks.weights import check_digest

_TITLE, _EXAMPLE = "text encoder", "stable-diffusion-v1-5/stable-diffusion-v1-5"
_LENGTH = 77  # tokens of a prompt, its start and end among them
_FILES = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)
_NUM_BYTES = 256  # of random weights: a token a byte, then start and end
_NUM_KEPT = 2  # encoded batches: the prompts', and the empty prompt's beside for guidance


class Prompts:
    """What the classes of a dataset say, encoded when asked.

    A class whose name has several lines says any of them: COCO's images have five captions or so.
    Copies of a network share the object: it is frozen, belongs to no state, and lies where it was
    last asked.

    Args:
        config: The encoder.
        width: Of its tokens; checked.
    """

    def __init__(self, config: TextConfig, width: int) -> None:
        self._config, self._width = config, width
        self._encoder: Any = None
        self._tokens: Tensor | None = None  # (T + 1, 77), int32, the empty prompt last
        self._starts = self._counts = torch.zeros(0, dtype=torch.int64)  # of each class's, (K,)
        self._kept: list[tuple[Tensor, int, Tensor]] = []
        self._only_counts = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def take(self, names: Sequence[str] | None) -> None:
        """Take the prompts of classes.

        Args:
            names: By class, its prompts, one a line; None: what only counts reads no file, and
                gets zeros.

        Raises:
            FileNotFoundError: If encoder and tokeniser cannot be had.
            ValueError: If the encoder is damaged, another one than its digest says, or of another
                width.
        """
        self._only_counts, self._kept = names is None, []
        if names is None:
            return
        if self._encoder is None:
            self._encoder = _encoder(self._config)
            if self._encoder.config.hidden_size != self._width:
                raise ValueError(
                    f"text encoder {self._config.weights} has width "
                    f"{self._encoder.config.hidden_size}, the network listens to {self._width}: "
                    "take the other's weights, or set network.architecture.cross_attention_dim"
                )
        texts = [name.split("\n") for name in names]
        self._counts = torch.tensor([len(lines) for lines in texts])
        self._starts = self._counts.cumsum(0) - self._counts
        every = [text for lines in texts for text in lines]
        self._tokens = _tokens(self._config, [*every, ""]).int()

    def first(self, labels: Tensor) -> Tensor:
        """Return the numbers of the first prompts of classes, (N,), as `__call__` takes them."""
        if self._only_counts:
            return labels
        return self._starts.to(labels.device)[labels]

    def draw(self, labels: Tensor, draws: Draws) -> Tensor:
        """Return the number of one prompt of each class, (N,), all equally likely."""
        if self._only_counts:
            return labels
        counts = self._counts.to(labels.device)[labels]
        share = draws.uniform("prompt", 1).squeeze(1).double()
        return self.first(labels) + (share * counts).long()

    def __call__(self, numbers: Tensor) -> Tensor:
        """Return the encoded prompts; of a tensor that was just asked for, what it gave then.

        Args:
            numbers: In [0, T) of T prompts, or -1, the empty one, (N,).

        Returns:
            (N, 77, D), float32; without a gradient.

        Raises:
            ValueError: If nobody has given prompts.
        """
        if self._only_counts:
            return torch.zeros(len(numbers), _LENGTH, self._width, device=numbers.device)
        if self._tokens is None:
            raise ValueError(
                "the network reads prompts, and nobody has given it any: call the method's "
                "name_classes first"
            )
        for known, version, encoded in self._kept:
            if known is numbers and known._version == version:
                return encoded
        if self._tokens.device != numbers.device:
            self._tokens = self._tokens.to(numbers.device)
            self._encoder.to(numbers.device)
        with torch.no_grad(), torch.autocast(numbers.device.type, enabled=False):
            encoded = self._encoder(self._tokens[numbers].long()).last_hidden_state
        self._kept = [*self._kept, (numbers, numbers._version, encoded)][-_NUM_KEPT:]
        return encoded


def text_directory(config: TextConfig) -> Path | None:
    """Return the directory that encoder and tokeniser come from, as `hub.local_directory` does."""
    return local_directory(_TITLE, config.weights, config.revision, _FILES, _EXAMPLE)


def text_digest(config: TextConfig) -> str:
    """Return 64 hex digits of encoder and tokeniser; those of the hub are fetched if need be.

    Raises:
        FileNotFoundError: If they cannot be had.
        ValueError: If they are others than `weights_sha256` says.
    """
    if config.weights == "random":
        return fingerprint(config.model_dump(mode="json"))
    directory = _directory(config)
    return _checked(config, directory)


def _directory(config: TextConfig) -> Path:
    return directory_of(_TITLE, config.weights, config.revision, _FILES, _EXAMPLE)


def _checked(config: TextConfig, directory: Path) -> str:
    """Return the digest of a directory's files, held against what is configured."""
    found = fingerprint([sha256_once(directory / name) for name in _FILES], digits=64)
    if config.weights_sha256 is not None:
        check_digest(found, config.weights_sha256, f"{_TITLE} {config.weights}")
    return found


def _encoder(config: TextConfig) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    if config.weights == "random":
        settings: dict[str, Any] = {
            "vocab_size": _NUM_BYTES + 2,
            "max_position_embeddings": _LENGTH,
        }
        special: Any = {
            "bos_token_id": _NUM_BYTES,
            "eos_token_id": _NUM_BYTES + 1,
            "pad_token_id": None,
        }
        check_architecture(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed or 0)
            found = CLIPTextModel(CLIPTextConfig(**settings, **special, **config.architecture))
    else:
        directory = _directory(config)
        _checked(config, directory)
        loading: Any = CLIPTextModel.from_pretrained(
            directory / "text_encoder",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        found, loaded = loading
        wrong = {
            what: sorted(str(key) for key in keys if "position_ids" not in str(key))
            for what, keys in loaded.items()
            if what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        }
        if any(wrong.values()):
            listed = "; ".join(
                f"{what.replace('_', ' ')}: {', '.join(keys[:4])}"
                for what, keys in wrong.items()
                if keys
            )
            raise ValueError(
                f"{directory / 'text_encoder'} is not a CLIP text encoder of its config.json, or "
                f"not the whole of one; {listed}"
            )
    return found.float().eval().requires_grad_(False)


def check_architecture(config: TextConfig) -> None:
    """Refuse keys that transformers does not know, and would swallow.

    Raises:
        ValueError: Naming them.
    """
    from transformers import CLIPTextConfig

    known = CLIPTextConfig().to_dict()
    if unknown := sorted(config.architecture.keys() - known.keys()):
        raise ValueError(
            f"network.text.architecture: CLIPTextConfig has no {', '.join(unknown)}; correct it"
        )


def _tokens(config: TextConfig, texts: Sequence[str]) -> Tensor:
    """Return the tokens of texts, cut off or filled with ends, (N, 77), int64."""
    if config.weights == "random":
        start, end = _NUM_BYTES, _NUM_BYTES + 1
        codes = [[start, *text.encode()[: _LENGTH - 2], end] for text in texts]
        return torch.tensor([code + [end] * (_LENGTH - len(code)) for code in codes])
    from transformers import CLIPTokenizer

    place = _directory(config) / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
    arguments: Any = {"padding": "max_length", "max_length": _LENGTH, "truncation": True}
    return tokenizer(list(texts), return_tensors="pt", **arguments).input_ids
