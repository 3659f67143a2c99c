"""Where a bundle is written: checked before the work, filled in a hidden folder, published by one rename."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mcip_qdrant.bundle import MANIFEST_FILE
from mcip_qdrant.errors import ExportError
from mcip_qdrant.manifest import Precision

logger = logging.getLogger(__name__)

_BYTES_PER_PARAMETER: dict[Precision, float] = {"fp32": 4, "fp16": 2, "int8": 1.3}


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output that exists, or that cannot be written.

    Raises:
        ExportError: naming the folder and the way out.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ExportError(f"--output {output}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"--output {output}: the folder {parent} is not writable")
    for leftover in parent.glob(f".{glob.escape(output.name)}.partial-*"):
        logger.warning(
            "%s is of an export that still runs or was killed; if it was killed, remove it to free the disk", leftover
        )
    if not os.path.lexists(output):
        return
    if not force:
        raise ExportError(f"--output {output} exists; choose another name, or pass --force to replace the bundle there")
    is_bundle = output.is_dir() and not output.is_symlink() and (output / MANIFEST_FILE).is_file()
    if not is_bundle and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(f"--output {output} is not a bundle; --force replaces nothing else")


def check_disk(output: Path, parameters: int, precisions: Sequence[Precision]) -> None:
    """Refuse before minutes of work where the result would not fit.

    Raises:
        ExportError: with what is needed and what is free.
    """
    per_parameter = sum(_BYTES_PER_PARAMETER[precision] for precision in {"fp32", *precisions})
    needed = int(parameters * per_parameter) + 64_000_000
    folder = output.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"not enough disk in {folder}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. "
            "Free some, choose another --output, or fewer --precision variants"
        )


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside the output, removed again unless it was published.

    Raises:
        ExportError: it cannot be written, for want of disk or of permission.
    """
    output = output.absolute()
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        yield work
    except OSError as exc:
        raise ExportError(f"cannot write the bundle below {output.parent}: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_durably(path: Path, text: str) -> None:
    """Write a text file and wait until it is on disk."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def publish(work: Path, output: Path, *, force: bool) -> None:
    """Give the work folder the output's name; with `force`, the bundle that has it goes."""
    # mkdtemp makes 0700; a bundle is read by other users' workers.
    umask = os.umask(0)
    os.umask(umask)
    work.chmod(0o777 & ~umask)
    output = output.absolute()
    if force and output.exists():
        replaced = Path(tempfile.mkdtemp(prefix=f".{output.name}.replaced-", dir=output.parent))
        output.rename(replaced / "bundle")
        work.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        work.rename(output)
