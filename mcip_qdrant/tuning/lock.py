"""One run at a time in one output folder."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.processes import Processes

_LOCK_FILE: Final = ".lock"


@contextmanager
def only_run(folder: Path, together: Processes) -> Iterator[None]:
    """Make the folder and keep other runs out of it; the system lets go when this process ends, however it ends.

    Raises:
        TuningError: another run is there, or there can be no such folder.
    """
    with ExitStack() as stack:
        failure = None
        if together.first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stream = stack.enter_context((folder / _LOCK_FILE).open("w"))
                _lock(stream, folder)
            except TuningError as exc:
                failure = str(exc)
            except OSError as exc:
                failure = f"--output {folder} cannot be used as a folder: {exc.strerror or exc}"
        failure = together.share(failure)
        if failure is not None:
            raise TuningError(failure)
        yield


def _lock(stream: IO[str], folder: Path) -> None:
    try:
        # Not flock: processes that read images would inherit it, and keep it for some seconds after a kill.
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in {errno.EACCES, errno.EAGAIN}:
            raise TuningError(
                f"another run is writing to {folder}: wait for it, or choose another --output. Two would destroy each other's files"
            ) from exc
        if exc.errno not in {
            errno.ENOLCK,
            errno.ENOTSUP,
            errno.ENOSYS,
        }:  # a file system without locks has to do without
            raise
