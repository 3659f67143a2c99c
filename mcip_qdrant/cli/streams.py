"""Standard streams that may be closed, full, or unable to show a file name."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any

import click


class _Forgiving(io.FileIO):
    """A descriptor for words to people: that nobody reads it, or that the disk behind it is full, must not end hours of work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BlockingIOError:
            raise
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Settings of the whole process; a library must not make them, its program may."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The next file that is opened would get this number, and be written into by whoever means the stream.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        raw = io.BufferedWriter(_Forgiving(2, "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True, write_through=True)
    # File names need not be UTF-8, and a terminal need not be able to show them.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def echo_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value as JSON proper, whatever the terminal's encoding is."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    readable = codecs.lookup(encoding).name == "utf-8"
    click.echo(json.dumps(value, ensure_ascii=not readable, indent=indent, allow_nan=False))
