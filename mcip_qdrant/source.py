"""Where image references come from: a folder, or a list of paths below a root."""

from __future__ import annotations

import codecs
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from mcip_qdrant.errors import ConfigurationError, SourceError
from mcip_qdrant.keys import ImageRef, encode_path, source_name
from mcip_qdrant.spill import SeenNames, SortedNames

IMAGE_SUFFIXES = frozenset(
    b".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .webp .bmp .dib .tif .tiff .avif .avifs".split()
)


@dataclass(slots=True)
class ListingReport:
    """What a listing left out: folders it could not read, and entries that are no images by name.

    `skipped` counts by suffix, or by a word such as `symlinked folder`.
    """

    errors: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class Source(Protocol):
    """A named, listable set of images."""

    @property
    def name(self) -> str:
        """Encoded source name, the first part of every key."""
        ...

    @property
    def root(self) -> Path:
        """Absolute folder that relative paths are relative to."""
        ...

    @property
    def complete(self) -> bool:
        """Whether a listing names every image of the source, so that pruning may trust it."""
        ...

    def __call__(self, report: ListingReport) -> Iterator[ImageRef]:
        """List references; problems go into the report."""
        ...


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Every image file below a folder, in sorted order. Symlinked folders are not entered, so no loop is possible.

    `apart`: files and folders that are no part of the archive, by absolute path. They are not even counted as skipped.
    """

    name: str
    root: Path
    every_file: bool = False
    complete: bool = True
    apart: Callable[[bytes], bool] = lambda _path: False

    def __call__(self, report: ListingReport) -> Iterator[ImageRef]:
        """List the folder, depth first."""
        yield from self._walk(os.fsencode(self.root), b"", report)

    def _walk(self, folder: bytes, prefix: bytes, report: ListingReport) -> Iterator[ImageRef]:
        pending = [(folder, prefix)]
        while pending:
            folder, prefix = pending.pop()
            files, below = SortedNames(), []
            try:
                with os.scandir(folder) as listing:
                    for entry in listing:
                        if self.apart(entry.path):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            below.append(entry.name)
                        elif self._is_candidate(entry, report):
                            files.add(entry.name)
            except OSError as exc:
                report.errors.append(f"{encode_path(folder)}: {exc.strerror}")
                continue
            for name in files:
                yield ImageRef(self.name, encode_path(prefix + name))
            for name in sorted(below, reverse=True):
                pending.append((os.path.join(folder, name), prefix + name + b"/"))

    def _is_candidate(self, entry: os.DirEntry[bytes], report: ListingReport) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(b"._"):
            report.skipped["AppleDouble file"] += 1
            return False
        if entry.is_symlink() and _is_folder(entry):
            report.skipped["symlinked folder"] += 1
            return False
        if not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
            report.skipped["special file"] += 1
            return False
        if self.every_file or suffix in IMAGE_SUFFIXES:
            return True
        report.skipped[encode_path(suffix) or "no suffix"] += 1
        return False


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of symlinks: a file reference whose reading will say so
        return False


@dataclass(frozen=True, slots=True)
class ListSource:
    """Paths from a file or from standard input, one per line (or NUL-separated), relative to a root or absolute below it."""

    name: str
    root: Path
    stream: IO[bytes]
    separator: bytes = b"\n"
    complete: bool = False

    def __call__(self, report: ListingReport) -> Iterator[ImageRef]:
        """Read the list as it comes; each path once."""
        root = os.path.normpath(os.fsencode(self.root.absolute()))
        seen = SeenNames()
        for number, raw in enumerate(_split(self.stream, self.separator)):
            line = raw
            if self.separator == b"\n":  # a text file, which Windows' editors write with these
                line = raw.removesuffix(b"\r").removeprefix(b"" if number else codecs.BOM_UTF8)
            if not line:
                continue
            if b"\0" in line:
                report.errors.append(f"{encode_path(line.replace(bytes(1), b'?'))}: contains a NUL")
                continue
            relative = _below(root, line)
            if relative in {b".", b".."} or relative.startswith(b"../"):
                report.errors.append(f"{encode_path(line)}: not below {self.root}")
                continue
            if seen.add(relative):
                yield ImageRef(self.name, encode_path(relative))


def _below(root: bytes, line: bytes) -> bytes:
    # The folder of an absolute path may be spelled through a symlink (/var and /private/var). The file itself is not resolved:
    # a list may name files that are symlinks, and reading checks where they lead.
    folder, name = os.path.split(os.path.normpath(os.path.join(root, line)))
    if os.path.isabs(line) and not os.path.join(folder, b"").startswith(os.path.join(root, b"")):
        folder = os.path.realpath(folder)
    return os.path.relpath(os.path.join(folder, name), root)


def _split(stream: IO[bytes], separator: bytes) -> Iterator[bytes]:
    # read1 gives what a pipe holds so far, read waits until it has everything that was asked for.
    read = getattr(stream, "read1", stream.read)
    begun: list[bytes] = []
    while piece := read(1 << 16):
        first, *others = piece.split(separator)
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = others[-1:]
    if begun:
        yield b"".join(begun)


def check_root(path: Path) -> Path:
    """The absolute root folder of a source.

    Raises:
        SourceError: missing, not a folder, or not readable.
    """
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise SourceError(f"{path} is not a folder; to ingest single files, list them: --list FILE")
        with os.scandir(path):
            return path.absolute()
    except FileNotFoundError as exc:
        raise SourceError(f"{path} does not exist") from exc
    except OSError as exc:
        raise SourceError(f"{path} cannot be read: {exc.strerror}") from exc


def parse_roots(given: Iterable[str]) -> dict[str, Path]:
    """Read what `--source-root` takes: `NAME=DIR` or `DIR` (its base name is the source's name). Folders are resolved.

    Raises:
        ConfigurationError: a folder that is missing or unreadable, or a name given twice.
    """
    roots: dict[str, Path] = {}
    for item in filter(None, given):
        # A folder may have = in its name; a source name that has one is written NAME=DIR with DIR absolute.
        name, separator, folder = item.partition("=")
        whole = Path(item)
        if separator and not folder:
            raise ConfigurationError(f"--source-root {item}: expected [NAME=]DIR")
        try:
            root = check_root(whole if not separator or whole.is_dir() else Path(folder)).resolve()
            source = source_name(os.fsencode(root.name) if not separator or whole.is_dir() else name)
        except SourceError as exc:
            raise ConfigurationError(f"--source-root {item}: {exc}") from exc
        if source in roots:
            raise ConfigurationError(f"--source-root {item}: source {source!r} is given twice")
        roots[source] = root
    if not roots:
        raise ConfigurationError("no source: say --source-root [NAME=]DIR")
    return roots
