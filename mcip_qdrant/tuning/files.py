"""The image files of a run: whether they are still those of before, and how many of them may be missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from mcip_qdrant.errors import TuningError

NAMED: Final = 20
TOLERATED: Final = 10


def names_below(paths: Sequence[Path]) -> list[str]:
    """Names of files relative to the deepest folder that holds them all, so that an archive may move as a whole."""
    if not paths:
        return []
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100  links stay as they are, and it is a million times
    root = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
    return [os.path.relpath(path, root) for path in absolute]


def text_name(path: Path) -> str | None:
    """The absolute path of a file as JSON and UTF-8 hold it, or None if they cannot."""
    name = str(path.absolute())
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return name


def file_stamps(paths: Sequence[Path]) -> list[str]:
    """Size and time of each file: what tells, without reading it, that it was replaced. Empty for a file that is not there."""
    stamps = []
    for path in paths:
        try:
            found = path.stat()
            stamps.append(f"{found.st_size} {found.st_mtime_ns}")
        except OSError:
            stamps.append("")
    return stamps


def too_many(count: int, of: int, share: float) -> bool:
    """Whether so many lost images of a set are beyond `share`, 0..1.

    A share of few images says little, so ten are always tolerated, or of fewer than a hundred a tenth.
    """
    return count > max(share * of, min(TOLERATED, of / 10))


def unreadable_files(paths: Sequence[Path], rows: Iterable[int], reasons: Mapping[str, str]) -> dict[str, str]:
    """File -> reason of some rows of a set, whose reasons this process may not know."""
    return {str(paths[row]): reasons.get(str(paths[row]), "another process says why") for row in rows}


def check_readable(failures: Mapping[str, str], of: int, share: float, what: str) -> None:
    """Refuse a set of images of which too many cannot be read.

    Args:
        failures: file -> reason, of those that cannot be read.
        of: size of the set.
        share: `--max-unreadable`.
        what: the images, as a person calls them.

    Raises:
        TuningError: there are too many, or none is left.
    """
    if failures and (len(failures) == of or too_many(len(failures), of, share)):
        path, reason = next(iter(failures.items()))
        raise TuningError(
            f"{len(failures)} of {of} {what} cannot be used, beyond --max-unreadable {share:g} (the first: {path}: {reason}). Is "
            "the archive still mounted? Nothing is lost: the same command goes on when they can be read again, "
            "or with a higher limit"
        )


def check_present(paths: Sequence[Path], stamps: Sequence[str], share: float) -> None:
    """Refuse an archive that is not there, before anything is compared with it or computed anew.

    Raises:
        TuningError: too many files are missing.
    """
    gone = {str(path): "no such file" for path, stamp in zip(paths, stamps, strict=True) if not stamp}
    check_readable(gone, len(paths), share, "images")
