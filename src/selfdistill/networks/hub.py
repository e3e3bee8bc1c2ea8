"""Directories of weights in Hugging Face's layouts: a local one, or one that the hub gives."""

import re
from collections.abc import Sequence
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_directory(
    title: str, weights: str, revision: str | None, files: Sequence[str], example: str
) -> Path | None:
    """Return the directory that weights come from; None if they are random or on the hub.

    A directory that exists is taken before a hub id of the same name.

    Args:
        title: What the weights are of, for messages.
        weights: "random", a directory, or a hub id.
        revision: Of a hub id.
        files: What has to be in the directory.
        example: A hub id, for messages.

    Raises:
        FileNotFoundError: If it is no hub id, nor a directory with the files.
        ValueError: If a revision is asked of a directory.
    """
    path = Path(weights)
    if weights == "random":
        return None
    if not path.is_dir():
        if _HUB_ID.fullmatch(weights) and not path.exists():
            return None
        raise FileNotFoundError(
            f"{title} weights {path}: no such directory; give one with {_listed(files)}, a hub id "
            f"such as {example}, or 'random'"
        )
    if revision is not None:
        raise ValueError(
            f"{title} weights {path} are a directory, which has no revision {revision!r}: "
            "leave `revision` out"
        )
    _check_files(title, path, files)
    return path


def directory_of(
    title: str, weights: str, revision: str | None, files: Sequence[str], example: str
) -> Path:
    """Return the directory of weights; of a hub id, in the hub's cache, filled if need be.

    Args:
        title: What the weights are of, for messages.
        weights: A directory, or a hub id.
        revision: Of a hub id.
        files: What has to be there; nothing else is fetched.
        example: A hub id, for messages.

    Raises:
        FileNotFoundError: If it cannot be had; the message says where to put what.
        ValueError: If a revision is asked of a directory.
    """
    local = local_directory(title, weights, revision, files, example)
    if local is not None:
        return local
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(weights, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # what a client of HTTP raises has no base in common
        raise FileNotFoundError(
            f"the weights of {title} {weights} could not be had ({error}): there is no "
            f"directory of that name, and the hub gives none; download {_listed(files)} of "
            f"{weights} from the Hugging Face hub elsewhere, put all of it into one directory and "
            f"give its path as the {title}'s `weights`"
        ) from error
    _check_files(title, directory, files)
    return directory


def _check_files(title: str, directory: Path, files: Sequence[str]) -> None:
    for name in files:
        if (directory / name).is_file():
            continue
        pickles = sorted(path.name for path in (directory / name).parent.glob("*.bin"))
        refused = f"; {', '.join(pickles)} is a pickle, and never read" if pickles else ""
        raise FileNotFoundError(
            f"{title} weights {directory}: no file {name} in it{refused}; download "
            f"{_listed(files)} into it, or have its library write them: "
            "`save_pretrained(..., safe_serialization=True)`"
        )


def _listed(files: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(files[:-1]), files[-1])))
