"""Project commands: `kedro run` that answers a user's mistake with one message, not a traceback."""

import functools
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.io import DatasetError
from kedro.validation.exceptions import ParameterValidationError

# What a user can get wrong arrives as one of these, with the key, file or value and the remedy in
# its message. Anything else is a defect of ours and keeps its traceback.
_MISTAKES = (ValueError, FileNotFoundError, DatasetError, ParameterValidationError)


@click.group(name="selfdistill")
def cli() -> None:
    """Commands of this project."""


def _message(error: BaseException) -> str:
    """Return the innermost message: Kedro wraps what its entries raise."""
    while isinstance(error, DatasetError) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(*args: Any, traceback: bool, **kwargs: Any) -> Any:
    if kwargs["pipeline"] and not kwargs["pipelines"]:  # both spellings, without a warning
        kwargs |= {"pipeline": None, "pipelines": [kwargs["pipeline"]]}
    try:
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]
    except _MISTAKES as error:
        if traceback:
            raise
        raise click.ClickException(_message(error)) from error


_traceback = click.Option(["--traceback"], is_flag=True, help="Show where a mistake was found.")
cli.add_command(
    click.Command(
        name="run",
        params=[*kedro_run.params, _traceback],
        callback=_run,
        help=kedro_run.help,
    )
)
