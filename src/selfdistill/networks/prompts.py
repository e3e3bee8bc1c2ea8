"""Prompts by label, and the frozen CLIP text encoder that reads them (arXiv:2103.00020).

transformers is imported when prompts are given, not before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from selfdistill.networks.hub import directory_of, local_directory
from selfdistill.networks.text_unet_config import TextConfig

_LENGTH = 77  # tokens of a prompt, its start and end among them
_FILES = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
)
_NUM_BYTES = 256  # of random weights: a token a byte, then start and end


class Prompts:
    """What the labels of a dataset say, encoded when asked.

    Copies of a network share it: it is frozen, belongs to no state, and lies where it was last
    asked.

    Args:
        config: The encoder.
        width: Of its tokens; checked.
    """

    def __init__(self, config: TextConfig, width: int) -> None:
        self._config, self._width = config, width
        self._encoder: Any = None
        self._tokens: Tensor | None = None  # (K + 1, 77), the empty prompt last
        self._is_counted_only = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def name(self, texts: Sequence[str] | None) -> None:
        """Say what the labels mean.

        Args:
            texts: A prompt a label; None: what only counts is told nothing, and reads no file.

        Raises:
            FileNotFoundError: If encoder and tokeniser cannot be had.
            ValueError: If the encoder is of another width.
        """
        if texts is None:
            self._is_counted_only = True
            return
        if self._encoder is None:
            self._encoder = _encoder(self._config)
            if self._encoder.config.hidden_size != self._width:
                raise ValueError(
                    f"text encoder {self._config.weights} has width "
                    f"{self._encoder.config.hidden_size}, the network listens to {self._width}: "
                    "take the other's weights, or set network.architecture.cross_attention_dim"
                )
        self._tokens = _tokens(self._config, [*texts, ""])

    def __call__(self, labels: Tensor) -> Tensor:
        """Return the encoded prompts.

        Args:
            labels: In [0, K) of K prompts, or -1, the empty one, (N,).

        Returns:
            (N, 77, D), float32; without a gradient.

        Raises:
            ValueError: If nobody has said what the labels mean.
        """
        if self._tokens is None:
            if self._is_counted_only:
                return torch.zeros(len(labels), _LENGTH, self._width, device=labels.device)
            raise ValueError(
                "the network reads prompts, and nobody has given it any: call the method's "
                "name_classes first"
            )
        if self._tokens.device != labels.device:
            self._tokens = self._tokens.to(labels.device)
            self._encoder.to(labels.device)
        with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
            return self._encoder(self._tokens[labels]).last_hidden_state


def text_directory(config: TextConfig) -> Path | None:
    """Return the directory that encoder and tokeniser come from, as `hub.local_directory` does."""
    return local_directory("text encoder", config.weights, config.revision, _FILES)


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed or 0)
            found = CLIPTextModel(CLIPTextConfig(**settings, **special, **config.architecture))
    else:
        directory = directory_of("text encoder", config.weights, config.revision, _FILES)
        found = CLIPTextModel.from_pretrained(
            directory / "text_encoder", use_safetensors=True, local_files_only=True
        )
    return found.float().eval().requires_grad_(False)


def _tokens(config: TextConfig, texts: Sequence[str]) -> Tensor:
    """Return the tokens of texts, cut off or filled with ends, (N, 77), int64."""
    if config.weights == "random":
        start, end = _NUM_BYTES, _NUM_BYTES + 1
        codes = [[start, *text.encode()[: _LENGTH - 2], end] for text in texts]
        return torch.tensor([code + [end] * (_LENGTH - len(code)) for code in codes])
    from transformers import CLIPTokenizer

    directory = directory_of("text encoder", config.weights, config.revision, _FILES)
    tokenizer = CLIPTokenizer.from_pretrained(directory / "tokenizer", local_files_only=True)
    arguments: Any = {"padding": "max_length", "max_length": _LENGTH, "truncation": True}
    return tokenizer(list(texts), return_tensors="pt", **arguments).input_ids
