"""The standard order of ImageNet-1k's classes, which labels, teachers and statistics share."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_WORDNET_ID = re.compile(r"n\d{8}")
_TANK_SUIT = "maillottanksuit"
_NAMED = 5  # classes that an error lists


def check_imagenet_order(class_names: Sequence[str]) -> None:
    """Check that classes are ImageNet-1k's, in the order of their WordNet ids.

    Args:
        class_names: Names in the order of the labels: WordNet ids, as class folders and tars have
            them, or descriptions ("tench, Tinca tinca"), as Hugging Face's imagenet-1k does. Of a
            description counts what precedes its first comma, letters and digits only.

    Raises:
        ValueError: If one is missing, unknown or out of order.
    """
    wordnet_ids, descriptions = _standard()
    if any(_WORDNET_ID.fullmatch(name) for name in class_names):
        expected, keys, found = wordnet_ids, wordnet_ids, list(class_names)
    else:
        expected, keys, found = descriptions, _short(descriptions), _short(class_names)
    if found == keys:
        return
    missing, unknown = _excess(keys, found, expected), _excess(found, keys, class_names)
    if missing or unknown:
        raise ValueError(
            f"the {len(class_names)} classes are not ImageNet's 1000: {_listed('missing', missing)}"
            f"{'; ' if missing and unknown else ''}{_listed('unknown or twice', unknown)}; name "
            "class folders or tars by WordNet ids (n01440764, ...), each once, or remove "
            "class_order if this is another dataset"
        )
    label = next(k for k, key in enumerate(keys) if found[k] != key)
    raise ValueError(
        f"class {label} is {class_names[label]!r}, but {expected[label]!r} in ImageNet's order; "
        "put the classes in the order of their WordNet ids (n01440764 is 0, n15075141 is 999)"
    )


def _standard() -> tuple[list[str], list[str]]:
    """Return WordNet ids and descriptions from timm's files; to import it would take seconds."""
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data" / "_info"
    wordnet_ids = (folder / "imagenet_synsets.txt").read_text("utf-8").split()
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    return wordnet_ids, [lemmas[wordnet_id] for wordnet_id in wordnet_ids]


def _short(descriptions: Sequence[str]) -> list[str]:
    """Return what identifies each description.

    Two classes are called crane, and Hugging Face the second of them crane2; two are maillot, one
    of them "maillot, tank suit". Elsewhere we found the first terms of Hugging Face's list and of
    timm's equal.
    """
    short = [
        _TANK_SUIT if _letters(text) == _TANK_SUIT else _letters(text.partition(",")[0])
        for text in descriptions
    ]
    if short.count("crane") == 2:
        short[len(short) - 1 - short[::-1].index("crane")] = "crane2"
    return short


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _excess(keys: Sequence[str], others: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names of the keys that occur more often here than among the others."""
    left = Counter(others)
    left.subtract(keys)
    found = []
    for key, name in zip(reversed(keys), reversed(names), strict=True):
        if left[key] < 0:
            left[key] += 1
            found.append(name)
    return found[::-1]


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
    return f"{what}: {', '.join(map(repr, names[:_NAMED]))}{more}"
