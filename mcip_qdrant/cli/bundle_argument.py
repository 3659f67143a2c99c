"""The bundle that a command is about: an argument, or `--bundle` and its environment variable as everywhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mcip_qdrant.cli.options import ANY_PATH

_VARIABLE = "MCIP_QDRANT_BUNDLE"


def bundle_argument(command: Callable[..., None]) -> Callable[..., None]:
    """`[DIRECTORY]` and `--bundle`; the command gets `directory`. Stands right below `@click.command`."""

    @click.argument("directory", type=ANY_PATH, required=False)
    @click.option(
        "--bundle", "bundle_path", envvar=_VARIABLE, show_envvar=True, type=ANY_PATH, help="The same as DIRECTORY."
    )
    @functools.wraps(command)
    def with_bundle(*, directory: Path | None, bundle_path: Path | None, **others: Any) -> None:
        source = click.get_current_context().get_parameter_source("bundle_path")
        if directory is not None and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("give the bundle once: as DIRECTORY or as --bundle")
        chosen = directory or bundle_path
        if chosen is None:
            raise click.UsageError(f"Missing argument 'DIRECTORY': a bundle, here or in --bundle or {_VARIABLE}.")
        command(directory=chosen, **others)

    return with_bundle
