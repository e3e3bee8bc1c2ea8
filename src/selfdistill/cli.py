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
_OURS = Path(selfdistill.__file__).parent
_SPEAKERS = (_OURS, Path(kedro.__file__).parent)
# But for faults of file systems, which name their file themselves, whoever ran into them.
_FAULTS_OF_DISKS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE
)  # fmt: skip


class _Quiet(click.Group):
    """Commands that answer a user's mistake with one message."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except _KINDS as wrapped:
            error = _innermost(wrapped)
            if not _is_mistake(error):
                raise
            raise click.ClickException(str(error)) from wrapped


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


@cli.group(cls=_Quiet)
def dvc() -> None:
    """Keep DVC's files in step with conf, catalog, registry and imports."""


@dvc.command()
def sync() -> None:
    """Write dvc.yaml and pipelines.dvc, and an empty params.yaml if there is none."""
    from selfdistill.lineage.files import generate, write

    changed = write(_project(), generate(_project()))
    click.echo("\n".join(map(str, changed)) or "nothing to write: all is up to date")


@dvc.command()
@click.argument("env")
def params(env: str) -> None:
    """Write down what the parameters of an environment come to; a stage of DVC."""
    from selfdistill.lineage.files import families, value_texts, write

    for family in families(_project()):
        if family.env == env:
            write(_project(), value_texts(family.values()), tidy=False)
            return
    raise click.ClickException(f"environment {env} has no stages: see conf and kedro dvc sync")


@dvc.command()
def check() -> None:
    """Fail if they differ from what sync would write."""
    from selfdistill.lineage.files import generate, outdated

    if files := outdated(_project(), generate(_project())):
        names = ", ".join(map(str, files))
        raise click.ClickException(f"out of date: {names}; run kedro dvc sync and commit")
    click.echo("up to date")


def _project() -> Path:
    from kedro.utils import find_kedro_project

    project = find_kedro_project(Path.cwd())
    assert project is not None  # kedro has no project commands elsewhere
    return Path(project)
