"""Labelled and captioned images in the two general layouts: a folder per class, and a table. No picture is opened here.

Benchmarks with layouts of their own are read in `layouts.py` into the same record.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.columns import csv_rows, jsonl_rows
from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import decode_path, encode_path
from mcip_qdrant.source import FolderSource, ListingReport, check_root
from mcip_qdrant.text import is_unicode

NO_CLASS: Final = -1
"""Label of an image without class: a distractor, found by others but never right and never asked for."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with the class and the captions that are known of them.

    `labels` is int64 `[N]`, an index into `names` or `NO_CLASS`; a name that no label points to is an empty class.
    `captions` holds one list per image (empty where an image has none), or is None where the layout has no captions.
    `notices` tells what was left out and why, one sentence each.
    """

    paths: list[Path]
    labels: NDArray[np.int64]
    names: list[str]
    captions: list[list[str]] | None = None
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.paths),):
            raise ValueError(f"labels must be int64 [{len(self.paths)}], not {self.labels.dtype} {self.labels.shape}")
        if self.captions is not None and len(self.captions) != len(self.paths):
            raise ValueError(f"{len(self.captions)} lists of captions for {len(self.paths)} images")
        if len(self.labels) and not -1 <= self.labels.min() <= self.labels.max() < len(self.names):
            raise ValueError("a label points outside of names")

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> NDArray[np.int64]:
        """Images per class: int64 `[len(names)]`."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).astype(np.int64)

    def where(self, keep: NDArray[np.bool_]) -> LabelledImages:
        """The images that a bool `[N]` chooses. Classes keep their numbers, even those that are now empty."""
        chosen = np.flatnonzero(keep)
        return replace(
            self,
            paths=[self.paths[i] for i in chosen],
            labels=self.labels[chosen],
            captions=None if self.captions is None else [self.captions[i] for i in chosen],
        )


def labelled(
    rows: Iterable[tuple[Path, str | None]],
    *,
    names: Iterable[str] = (),
    captions: list[list[str]] | None = None,
    notices: Iterable[str] = (),
) -> LabelledImages:
    """Number the classes of (path, class name or None) rows by sorted name; `names` adds classes that may have no image."""
    rows = list(rows)
    known = sorted({*names, *(name for _, name in rows if name is not None)})
    number = {name: index for index, name in enumerate(known)}
    labels = np.array([NO_CLASS if name is None else number[name] for _, name in rows], dtype=np.int64)
    return LabelledImages([path for path, _ in rows], labels, known, captions, tuple(notices))


def read_folder(root: Path) -> LabelledImages:
    """Read `root/<class>/**/image.jpg`: the first folder below the root is the class, as in torchvision's ImageFolder.

    Classes are numbered by sorted name and images are in sorted order within each. A folder without images is an empty
    class. A class folder may be a symlink; symlinked folders further down are not entered.

    Left out, with a notice: whatever is hidden (its name begins with a dot), files beside the class folders, and files that
    are no image by name.

    Raises:
        SourceError: the root cannot be read, a folder below it cannot be listed, there is no class folder, or two are of
            one name.
    """
    base = check_root(root)
    rows: list[tuple[Path, str | None]] = []
    names: set[str] = set()
    notices = []
    for entry in sorted(base.iterdir()):
        if _hidden(entry.name):
            notices.append(f"{show(entry.name)}: hidden, left out")
            continue
        if not entry.is_dir():
            notices.append(f"{show(entry.name)}: not in a class folder, left out")
            continue
        name = class_of_folder(entry.name)
        if name in names:
            raise SourceError(f"{root} has two folders for the class {name}: one is written as the other is read")
        images, said = list_images(entry)
        names.add(name)
        rows += [(path, name) for path in images]
        notices += [f"class {name}: {one}" for one in said]
        if not images:
            notices.append(f"class {name} is empty")
    if not names:
        raise SourceError(f"{root} has no class folders: expected {root}/CLASS/image.jpg")
    return labelled(rows, names=names, notices=notices)


def list_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Every image by name below a folder that is not hidden, depth first and sorted, and what was left out.

    Raises:
        SourceError: a folder cannot be listed: a benchmark with a hole in it would give a wrong number.
    """
    report = ListingReport()
    base = check_root(folder)
    refs = list(FolderSource("evaluation", base)(report))
    seen = [ref.relative for ref in refs if not any(map(_hidden, ref.relative.split("/")))]
    if report.errors:
        raise SourceError(f"{folder}: {report.errors[0]}")
    notices = [f"{count} files left out ({kind})" for kind, count in sorted(report.skipped.items())]
    if hidden := len(refs) - len(seen):
        notices.append(f"{hidden} hidden images left out")
    return [base / os.fsdecode(decode_path(relative)) for relative in seen], notices


def _hidden(name: str) -> bool:
    return name.startswith(".")


def read_table(path: Path) -> LabelledImages:
    """Read a CSV or JSONL table with the columns `image`, `class` (optional) and `captions` or `caption` (optional).

    Paths are absolute or relative to the table's folder. Several captions are a JSON list, or are separated by `|` in CSV, or
    stand in repeated rows of one image. Where a row has both columns, `captions` counts, and `caption` if that is empty. Rows
    without class are distractors (`NO_CLASS`). Images keep the order of their
    first row; classes are numbered by sorted name. Whether a picture can be read is found out when it is needed.

    Raises:
        SourceError: not there, unreadable, no `image` column, or one image in two classes; the row is named.
    """
    readers: Mapping[str, Callable[[Path], list[dict[str, Any]]]] = {".csv": csv_rows, ".jsonl": jsonl_rows}
    if not os.path.lexists(path):
        raise SourceError(f"{path} does not exist")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path}: expected a .csv or .jsonl file with the columns image, class, captions")
    try:
        rows = reader(path)
    except OSError as exc:
        raise SourceError(f"{path}: {exc.strerror}") from exc
    except (ValueError, csv.Error) as exc:
        raise SourceError(f"{path}: {exc}") from exc
    if not rows:
        raise SourceError(f"{path} has no rows")
    classes: dict[Path, str | None] = {}
    captions: dict[Path, list[str]] = {}
    notices = []
    for number, row in enumerate(rows, start=1):
        image = row.get("image")
        if not isinstance(image, str) or not image or "\0" in image:
            raise SourceError(f"{path}: row {number} has no 'image' (its columns: {', '.join(row)})")
        where, name = path.parent / image, _class_name(row.get("class"))
        if classes.setdefault(where, name) != name:
            raise SourceError(f"{path}: row {number}: {image} was in class {classes[where]!r} before, here in {name!r}")
        try:
            said = _captions(row, from_cell=reader is csv_rows)
        except ValueError as exc:
            raise SourceError(f"{path}: row {number}: {exc}") from exc
        kept = [text for text in said if text.strip()]
        if len(kept) < len(said):
            notices.append(f"row {number}: {len(said) - len(kept)} empty captions left out")
        captions.setdefault(where, []).extend(kept)
    has_captions = any("captions" in row or "caption" in row for row in rows)
    return labelled(
        classes.items(), captions=[captions[where] for where in classes] if has_captions else None, notices=notices
    )


def read_images(path: Path) -> LabelledImages:
    """Read whichever of the two general layouts `path` is: a folder of classes, or a table."""
    return read_folder(path) if path.is_dir() else read_table(path)


def show(name: str | bytes) -> str:
    """A file name as text that any output can hold: `%` and bytes that are not UTF-8 are percent-encoded, as in keys."""
    return encode_path(name)


def class_of_folder(name: str) -> str:
    """The class that a folder's name says: the name itself, as tables and prompts have it. What is no text is shown as one."""
    return name if is_unicode(name) else show(name)


def _class_name(value: object) -> str | None:
    if value is None or value == "":
        return None
    return str(value)


def _captions(row: Mapping[str, Any], *, from_cell: bool) -> list[str]:
    """What the first of the columns says that says anything; tables may have both, one of them empty."""
    said: list[str] = []
    for column in ("captions", "caption"):
        texts = _texts_of(row.get(column), from_cell=from_cell)
        if any(texts):
            return texts
        said = said or texts
    return said


def _texts_of(value: Any, *, from_cell: bool) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str) and from_cell:
        value = _texts_of_cell(value)
    elif isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("captions must be text or a list of texts")
    return [text.strip() for text in value]


def _texts_of_cell(cell: str) -> Any:
    if not cell.lstrip().startswith("["):
        return cell.split("|")
    try:
        return json.loads(cell)
    except ValueError as exc:
        raise ValueError(f"captions begin with '[' but are not a JSON list: {exc}") from exc
