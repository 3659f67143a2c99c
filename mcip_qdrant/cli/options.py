"""Options that several commands share, each with its environment variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcip_qdrant.credentials import api_key

if TYPE_CHECKING:
    from mcip_qdrant.store import Store

_F = TypeVar("_F", bound=Callable[..., Any])

DEFAULT_QDRANT = "./qdrant"
# Whether a path can be read is found out where it is read: exit code and message are then those of the thing itself.
ANY_PATH = click.Path(path_type=Path, readable=False)


def bundle_option(command: _F) -> _F:
    """`--bundle`."""
    return click.option(
        "--bundle",
        "bundle_path",
        envvar="MCIP_QDRANT_BUNDLE",
        show_envvar=True,
        required=True,
        type=ANY_PATH,
        help="Bundle directory made by `mcip-qdrant export`.",
    )(command)


def _collection_name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not value.strip() or "/" in value:
        raise click.BadParameter(f"{value!r}: a collection needs a name, without slashes")
    return value


def store_options(command: _F) -> _F:
    """`--qdrant` and `--collection`."""
    command = click.option(
        "--collection",
        envvar="MCIP_QDRANT_COLLECTION",
        show_envvar=True,
        default="images",
        show_default=True,
        callback=_collection_name,
        help="Collection, or alias of one.",
    )(command)
    return click.option(
        "--qdrant",
        "location",
        envvar="MCIP_QDRANT_URL",
        show_envvar=True,
        default=DEFAULT_QDRANT,
        show_default=True,
        metavar="PATH|URL",
        help="Qdrant server (http://HOST:6333) or a folder for embedded mode: one process at a time, good for some "
        "20,000 images. An embedded folder holds pickles: open only your own.",
    )(command)


def device_option(command: _F) -> _F:
    """`--device`."""
    return click.option(
        "--device",
        envvar="MCIP_QDRANT_DEVICE",
        show_envvar=True,
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda[:N]",
        help="Where the model runs. What is asked for and not active is an error; auto says what it chose.",
    )(command)


def broker_option(*, required: bool) -> Callable[[_F], _F]:
    """`--broker`."""
    return click.option(
        "--broker",
        envvar="MCIP_QDRANT_BROKER",
        show_envvar=True,
        required=required,
        metavar="URL",
        help="Redis: redis://HOST:6379/0, or rediss:// for TLS. Its password comes from MCIP_QDRANT_BROKER_PASSWORD or "
        "MCIP_QDRANT_BROKER_PASSWORD_FILE, a private CA from MCIP_QDRANT_BROKER_CA.",
    )


def source_root_option(purpose: str, *, required: bool = False) -> Callable[[_F], _F]:
    """`--source-root`."""
    return click.option(
        "--source-root",
        "source_roots",
        multiple=True,
        type=click.Path(),  # which splits the variable at colons
        envvar="MCIP_QDRANT_SOURCE_ROOTS",
        show_envvar=True,
        required=required,
        metavar="[NAME=]DIR",
        help=f"{purpose}. NAME is the archive's --source name (default: the folder's base name). Repeatable; in the environment "
        "separated by colons.",
    )


def precision_option(command: _F) -> _F:
    """`--precision` of a command that runs graphs."""
    return click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16", "int8"]),
        default=None,
        help="Which graphs to run. Default: fp16 on CUDA, fp32 on the CPU.",
    )(command)


def json_option(command: _F) -> _F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def connect(location: str, *, create: bool = False, timeout_s: int = 60) -> Store:
    """Open the store that `--qdrant` names, with the API key of the environment; arguments and errors as `open_store`."""
    from mcip_qdrant.store import open_store

    return open_store(location, create=create, api_key=api_key(), timeout_s=timeout_s)


def on_one_line(text: str) -> str:
    """Text from file names, made safe to print: a name may hold newlines and terminal escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say_device(provider: str, device: str) -> None:
    """Tell on stderr what `auto` chose."""
    if device.strip().lower() == "auto":
        click.echo(f"device auto: running on {provider}", err=True)
