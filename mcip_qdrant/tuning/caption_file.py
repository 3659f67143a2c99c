"""Files of captions that belong to no image: one a line, or a column of a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mcip_qdrant.columns import csv_rows, jsonl_rows
from mcip_qdrant.errors import TuningError


def read_caption_file(path: Path) -> list[str]:
    """The distinct captions of a file, in order of first sight, blank ones left out.

    Raises:
        TuningError: unreadable, not UTF-8, no column `caption`, or no caption in it.
    """
    try:
        texts = list(dict.fromkeys(text for text in map(str.strip, _caption_lines(path)) if text))
    except (OSError, ValueError, csv.Error) as exc:
        raise TuningError(f"{path}: {getattr(exc, 'strerror', None) or exc}") from exc
    if not texts:
        raise TuningError(f"{path} holds no caption: expected one a line, or a .csv / .jsonl with the column 'caption'")
    return texts


def _caption_lines(path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".jsonl"}:
        with path.open(encoding="utf-8-sig") as stream:
            yield from stream
        return
    rows: Iterable[dict[str, Any]] = csv_rows(path) if suffix == ".csv" else jsonl_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("caption"), str):
            raise TuningError(f"{path}: row {number} has no text in a column 'caption' (its columns: {', '.join(row)})")
        yield row["caption"]
