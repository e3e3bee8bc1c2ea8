"""Project commands: `kedro run` that answers a user's mistake with one message, not a traceback."""

import errno
import functools
import traceback
from pathlib import Path
from typing import Any

import click
import kedro
from kedro.framework.cli.project import run as kedro_run
from kedro.io import DatasetError
from kedro.validation.exceptions import ParameterValidationError

import selfdistill

# What a user can get wrong arrives as one of these, with the key, file or value and the remedy in
# its message ...
_KINDS = (ValueError, OSError, FloatingPointError, DatasetError, ParameterValidationError)
# ... raised on purpose, by one of these packages. Whatever comes from elsewhere is a defect.
# Faults of file systems name their file themselves, whoever ran into them.
_FAULTS_OF_DISKS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE
)  # fmt: skip
_OURS = Path(selfdistill.__file__).parent
_SPEAKERS = (_OURS, Path(kedro.__file__).parent)


@click.group(name="selfdistill")
def cli() -> None:
    """Commands of this project."""


def _innermost(error: BaseException) -> BaseException:
    """Return our own error, or the original one: Kedro wraps what its entries raise."""
    while isinstance(error, DatasetError) and error.__cause__ and not _raised_by(error, _OURS):
        error = error.__cause__
    return error


def _raised_by(error: BaseException, package: Path) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(package)


def _is_mistake(error: BaseException) -> bool:
    """Tell a user's mistake, or the machine's fault, from a defect by who raised the error."""
    if isinstance(error, OSError) and error.errno in _FAULTS_OF_DISKS:
        return True
    return any(_raised_by(error, speaker) for speaker in _SPEAKERS)


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(*args: Any, **kwargs: Any) -> Any:
    wants_traceback = kwargs.pop("traceback")
    if kwargs["pipeline"] and not kwargs["pipelines"]:  # both spellings, without a warning
        kwargs |= {"pipeline": None, "pipelines": [kwargs["pipeline"]]}
    try:
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]
    except _KINDS as wrapped:
        error = _innermost(wrapped)
        if wants_traceback or not _is_mistake(error):
            raise
        raise click.ClickException(str(error)) from wrapped


_traceback = click.Option(["--traceback"], is_flag=True, help="Show where a mistake was found.")
cli.add_command(
    click.Command(
        name="run",
        params=[*kedro_run.params, _traceback],
        callback=_run,
        help=kedro_run.help,
    )
)
