"""Reference -> bytes, without ever leaving the source's root."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.keys import ImageRef, decode_path

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})


@dataclass(frozen=True, slots=True)
class FileState:
    """Size in bytes and modification time of a file: enough to tell whether it changed."""

    bytes: int
    modified_at: str


@dataclass(frozen=True, slots=True)
class ReadImage:
    """The compressed bytes of one image file, with what the payload says about it."""

    data: bytes
    sha256: str
    state: FileState


def stat_image(root: Path, ref: ImageRef) -> FileState | None:
    """Size and time of the file, or None where it cannot be examined (reading it will say why)."""
    try:
        return _state(os.stat(_path(root, ref)))
    except (OSError, ValueError):
        return None


def is_gone(root: Path, ref: ImageRef) -> bool:
    """Whether there is nothing of this name any more. What cannot be examined, or is a link that leads nowhere, is not gone."""
    try:
        os.lstat(_path(root, ref))
    except OSError as exc:
        return exc.errno in _NOT_THERE
    except ValueError:  # a NUL, which no listing can have found
        return True
    return False


def read_image(root: Path, ref: ImageRef, *, max_bytes: int) -> ReadImage:
    """Read one image file.

    Raises:
        ImageError: gone, not a regular file, leads outside the root, larger than `max_bytes`, or not readable.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(_path(root, ref), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _as_image_error(exc) from exc
    except ValueError as exc:  # a NUL, which no listing can have found
        raise ImageError(Reason.GONE, "no file can have this name") from exc
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(Reason.NOT_A_FILE, "not a regular file")
        _check_below(descriptor, root)
        if found.st_size > max_bytes:
            raise ImageError(Reason.TOO_LARGE, f"{found.st_size} bytes; the limit is {max_bytes}")
        try:
            data = _read_at_most(descriptor, max_bytes)
        except OSError as exc:
            raise _as_image_error(exc) from exc
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise ImageError(Reason.TOO_LARGE, f"grew beyond {max_bytes} bytes while it was read")
    return ReadImage(data, hashlib.sha256(data).hexdigest(), FileState(len(data), _state(found).modified_at))


def _path(root: Path, ref: ImageRef) -> bytes:
    return os.path.join(os.fsencode(root), decode_path(ref.relative))


def _read_at_most(descriptor: int, max_bytes: int) -> bytes:
    pieces = []
    left = max_bytes + 1
    while left > 0 and (piece := os.read(descriptor, min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _state(found: os.stat_result) -> FileState:
    # Microseconds: what RFC 3339 timestamps in Qdrant keep.
    seconds, nanoseconds = divmod(found.st_mtime_ns, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):  # a damaged time stamp, beyond any calendar
        moment = (datetime.max if seconds > 0 else datetime.min).replace(tzinfo=UTC)
    moment = moment.replace(microsecond=nanoseconds // 1000)
    return FileState(found.st_size, moment.isoformat(timespec="microseconds").replace("+00:00", "Z"))


def _check_below(descriptor: int, root: Path) -> None:
    """Compare real paths of what was really opened, so that no symlink and no rename in between can lead outside."""
    if sys.platform == "linux":
        real = os.readlink(f"/proc/self/fd/{descriptor}".encode())
    else:
        import fcntl

        real = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")  # type: ignore[attr-defined]
    if not real.startswith(os.path.join(os.path.realpath(os.fsencode(root)), b"")):
        raise ImageError(Reason.OUTSIDE_ROOT, "leads outside the source's folder")


def _as_image_error(exc: OSError) -> ImageError:
    if exc.errno in _NOT_THERE:
        return ImageError(Reason.GONE, "the file is no longer there")
    if exc.errno == errno.ENXIO:
        return ImageError(Reason.NOT_A_FILE, "not a regular file")
    if exc.errno == errno.ELOOP:
        return ImageError(Reason.UNREADABLE, "a loop of symbolic links")
    return ImageError(Reason.UNREADABLE, exc.strerror or str(exc))
