"""What `mcip-qdrant ingest` is given: the source of references, payload indexes, and the limit on pixels."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mcip_qdrant.source import Source


def parse_indexes(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--index FIELD:TYPE`, as field -> type."""
    from mcip_qdrant.collection import INDEX_TYPES

    indexes = {}
    for value in values:
        field, _, kind = value.rpartition(":")
        if not field or kind not in INDEX_TYPES:
            raise click.BadParameter(f"{value!r}: expected FIELD:TYPE with TYPE one of {', '.join(INDEX_TYPES)}")
        indexes[field] = kind
    return indexes


def raise_pillow_limit(max_pixels: int) -> None:
    """Pillow's own limit is a global of the process, so only the program may move it; `decode` enforces ours."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)


def own_files(location: str, failures: Path) -> Callable[[bytes], bool]:
    """Whether an absolute path is one of those that `ingest` itself writes, which may well lie in the archive.

    Args:
        location: `--qdrant`.
        failures: `--failures`.
    """
    from mcip_qdrant.failures import FailureFile

    folder = failures.absolute().parent.resolve()
    exact = {os.fsencode(folder / failures.name)}
    if "://" not in location:
        exact.add(os.fsencode(Path(location).resolve()))
    partial = os.fsencode(folder / FailureFile.partial_prefix(failures))
    return lambda path: path in exact or path.startswith(partial)


def chosen_source(
    folder: Path,
    name: str | None,
    list_file: Path | None,
    null_separated: bool,
    all_files: bool,
    apart: Callable[[bytes], bool],
) -> Source:
    """The source that FOLDER, --source and --list name.

    Args:
        apart: paths that a folder's listing leaves out.

    Raises:
        SourceError: the folder or the list cannot be read, or the name cannot be used.
    """
    from mcip_qdrant.errors import SourceError
    from mcip_qdrant.keys import source_name
    from mcip_qdrant.source import FolderSource, ListSource, check_root

    root = check_root(folder)
    # resolve(): `ingest .` and `ingest photos/` name the same archive as `ingest /data/photos`.
    encoded = source_name(os.fsencode(root.resolve().name) if name is None else name)
    if list_file is None:
        return FolderSource(encoded, root.resolve(), every_file=all_files, apart=apart)
    if str(list_file) == "-" and sys.stdin is None:
        raise SourceError("--list -: standard input is closed")
    try:
        stream = sys.stdin.buffer if str(list_file) == "-" else list_file.open("rb")
    except OSError as exc:
        raise SourceError(f"--list {list_file}: {exc.strerror}") from exc
    return ListSource(encoded, root.resolve(), stream, b"\0" if null_separated else b"\n")
