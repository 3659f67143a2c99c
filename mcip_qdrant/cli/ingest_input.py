"""What `mcip-qdrant ingest` is given: the source of references, payload indexes, and the limit on pixels."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mcip_qdrant.source import Source


def parse_indexes(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
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


def chosen_source(
    folder: Path, name: str | None, list_file: Path | None, null_separated: bool, all_files: bool
) -> Source:
    from mcip_qdrant.errors import SourceError
    from mcip_qdrant.keys import source_name
    from mcip_qdrant.source import FolderSource, ListSource, check_root

    root = check_root(folder)
    # resolve(): `ingest .` and `ingest photos/` name the same archive as `ingest /data/photos`.
    encoded = source_name(os.fsencode(root.resolve().name) if name is None else name)
    if list_file is None:
        return FolderSource(encoded, root.resolve(), every_file=all_files)
    try:
        stream = sys.stdin.buffer if str(list_file) == "-" else list_file.open("rb")
    except OSError as exc:
        raise SourceError(f"--list {list_file}: {exc.strerror}") from exc
    return ListSource(encoded, root.resolve(), stream, b"\0" if null_separated else b"\n")
