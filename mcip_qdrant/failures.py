"""`failures.jsonl`: the dead letters of one run, one JSON object per line: key, reason, message."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from mcip_qdrant.errors import SourceError
from mcip_qdrant.report import DeadLetter

# A file this old that nobody has locked is not one that is just being made.
_REMAINS_S = 60


class FailureFile:
    """Written as the run goes; takes the place of the previous run's file when the run ends.

    A run that was refused before it could fail any image leaves the previous file as it is.
    """

    def __init__(self, path: Path) -> None:
        """Open.

        Raises:
            SourceError: the folder cannot be written, or the path is something else than a file.
        """
        self.path = path
        if path.exists() and not path.is_file():
            # A device would be replaced by the file, which for root is the end of /dev/null.
            raise SourceError(f"--failures {path}: is not a regular file; choose another with --failures FILE")
        try:
            self._remove_remains()
            descriptor, name = tempfile.mkstemp(prefix=self.partial_prefix(path), dir=path.absolute().parent)
        except OSError as exc:
            raise SourceError(
                f"--failures {path}: cannot be written: {exc.strerror}; choose another with --failures FILE"
            ) from exc
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._temporary = Path(name)
        self._written = False
        self._stream: IO[str] = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def partial_prefix(path: Path) -> str:
        """How the names of unfinished files begin, which lie beside the file."""
        return f".{path.name}.partial-"

    def _remove_remains(self) -> None:
        """Of runs that were killed: the lock goes with the process."""
        for remains in self.path.absolute().parent.glob(f"{glob.escape(self.partial_prefix(self.path))}*"):
            with suppress(OSError), remains.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - remains.stat().st_mtime > _REMAINS_S:
                    remains.unlink()

    def write(self, letter: DeadLetter) -> None:
        """Append one dead letter."""
        line = {"key": letter.key, "reason": letter.reason.value, "message": letter.message}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
        self._written = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if kind is not None and not self._written:
            self._temporary.unlink()
            return
        # mkstemp makes 0600; other users' tools read this file.
        umask = os.umask(0)
        os.umask(umask)
        self._temporary.chmod(0o666 & ~umask)
        self._temporary.replace(self.path)
