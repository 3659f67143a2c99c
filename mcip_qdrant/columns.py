"""The user's own columns: a CSV or JSONL table joined to images by key or relative path."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import ImageRef, encode_path
from mcip_qdrant.points import OWN_FIELDS

_KEY_COLUMNS = ("key", "path")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_WHOLE = re.compile(r"-?\d+", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)


class Columns:
    """Payload fields by image. Rows that no image asked for are counted, so that a wrong key column is noticed.

    Args:
        by_path: rows by path relative to the source.
        by_key: rows by key, or by path relative to the source where that is no key.
    """

    def __init__(self, by_path: Mapping[str, Mapping[str, Any]], by_key: Mapping[str, Mapping[str, Any]]) -> None:
        self._by_path, self._by_key = by_path, by_key
        self._used: set[tuple[str, str]] = set()

    def __call__(self, ref: ImageRef) -> Mapping[str, Any]:
        """The fields of one image; empty where the table has no row for it."""
        # An archive `photos` may hold a folder `photos`: a path is never taken for a key, and what can be a key is no path.
        inside_out = ref.relative.startswith(f"{ref.source}/")
        for kind, rows, name in (
            ("key", self._by_key, ref.key),
            ("path", self._by_path, ref.relative),
            ("key", self._by_key, "" if inside_out else ref.relative),
        ):
            if name in rows:
                self._used.add((kind, name))
                return rows[name]
        return {}

    @property
    def unmatched(self) -> int:
        """Rows that belong to no image seen so far."""
        return len(self._by_path) + len(self._by_key) - len(self._used)

    @classmethod
    def read(cls, path: Path) -> Columns:
        """Read a table with a column `key` (`<source>/<path>`, or the path relative to the source) or `path`.

        CSV cells become numbers or booleans where a whole column reads as such (so `007` stays text), and empty cells are left
        out. JSONL keeps its own types.

        Raises:
            SourceError: unreadable, without key column, a row twice, or a column named like one of our own payload fields.
        """
        readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {".csv": _typed_csv, ".jsonl": jsonl_rows}
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise SourceError(f"--columns {path}: expected a .csv or .jsonl file")
        try:
            table = reader(path)
        except OSError as exc:
            raise SourceError(f"--columns {path}: {exc.strerror}") from exc
        except (ValueError, csv.Error) as exc:
            raise SourceError(f"--columns {path}: {exc}") from exc
        by_path: dict[str, Mapping[str, Any]] = {}
        by_key: dict[str, Mapping[str, Any]] = {}
        for number, row in enumerate(table, start=1):
            column = next((name for name in _KEY_COLUMNS if name in row), None)
            if column is None:
                raise SourceError(
                    f"--columns {path}: row {number} has no 'key' or 'path' column (it has {', '.join(row)})"
                )
            # `path` is a plain file name as the user's tools write it; `key` is already in our encoding.
            raw = row.pop(column)
            if not isinstance(raw, str):
                raise SourceError(f"--columns {path}: row {number}: the {column} {raw!r} is not text")
            try:
                name = raw if column == "key" else encode_path(raw)
            except ValueError as exc:
                raise SourceError(f"--columns {path}: row {number}: {exc}") from exc
            if clash := sorted(OWN_FIELDS & set(row)):
                raise SourceError(
                    f"--columns {path}: the column {clash[0]!r} is written by mcip-qdrant itself; rename it"
                )
            rows = by_key if column == "key" else by_path
            if name in rows:
                raise SourceError(f"--columns {path}: row {number} is the second one for {raw!r}")
            rows[name] = row
        return cls(by_path, by_key)


def jsonl_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, one per line that is not blank.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not a JSON object, or holds what JSON proper cannot say; the line is named.
    """
    rows = []
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                # Python also reads NaN, 1e999 and half surrogate pairs, which Qdrant cannot store.
                json.dumps(row, allow_nan=False, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as exc:
                raise ValueError(f"line {number} is not JSON: {exc}") from exc
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")  # noqa: TRY004 - one error type for bad tables
            rows.append(row)
    return rows


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, cells as they are written.

    Raises:
        OSError: it cannot be read.
        ValueError, csv.Error: a column twice or without a name, a row of another length, broken quoting.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        table = list(reader)
        names = list(reader.fieldnames or [])
    if "" in names:
        raise ValueError(
            f"column {names.index('') + 1} has no name; if it is an index that pandas wrote: to_csv(…, index=False)"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the column {twice[0]!r} is there twice")
    for number, row in enumerate(table, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} does not have {len(names)} cells")
    return table


def _typed_csv(path: Path) -> list[dict[str, Any]]:
    table = csv_rows(path)
    names = list(table[0]) if table else []
    kinds = {
        name: _column_kind([row[name] for row in table if row[name]]) for name in names if name not in _KEY_COLUMNS
    }
    return [
        {name: kinds.get(name, str)(cell) for name, cell in row.items() if cell or name in _KEY_COLUMNS}
        for row in table
    ]


def _column_kind(cells: list[str]) -> Callable[[str], Any]:
    if cells and all(_INTEGER.fullmatch(cell) for cell in cells):
        return int
    if cells and all(_is_float(cell) for cell in cells):
        return float
    if cells and all(cell.lower() in {"true", "false"} for cell in cells):
        return lambda cell: cell.lower() == "true"
    return str


def _is_float(cell: str) -> bool:
    """A number that a float holds: finite, and with all digits if it is whole (identifiers can be longer than that)."""
    if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
        return False
    return not _WHOLE.fullmatch(cell) or int(float(cell)) == int(cell)
