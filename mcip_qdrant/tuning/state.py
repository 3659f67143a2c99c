"""Files of a training run on disk: written whole or not at all, and read without running anything in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import torch

from mcip_qdrant.errors import TuningError

STATE_FILE: Final = "state.pt"
REPORT_FILE: Final = "report.json"
_FORMAT: Final = 1


@dataclass(slots=True)
class State:
    """All that a run needs to go on: weights that move, optimizer, and what was found out so far.

    `step` is the number of finished steps. Random numbers are a function of seed and step, so none are kept. `graded_step` is
    the last one that was evaluated, and `left_out` holds the rows of validation images that could not be read at the first
    evaluation and do not count since; None before it.
    """

    fingerprint: dict[str, Any]
    step: int = 0
    moving: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    best_step: int = 0
    start: float | None = None
    without_gain: int = 0
    history: list[list[float]] = field(default_factory=list)
    graded_step: int = 0
    left_out: list[int] | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    replaced: int = 0

    def forget_best(self) -> None:
        """Choose the best weights anew, among those of this step and later ones."""
        self.best = self.start = None
        self.best_step = self.without_gain = self.graded_step = 0

    def save(self, folder: Path) -> None:
        """Write `state.pt` into the run's folder, in one step that a crash cannot split."""
        described = {name: getattr(self, name) for name in self.__slots__}
        save_tensors({"format": _FORMAT, **described}, folder / STATE_FILE)


def load_state(folder: Path) -> State | None:
    """Read the saved state of a run, or None if there is none.

    Raises:
        TuningError: damaged, or of another version.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        version = saved.pop("format")
        state = State(**saved) if version == _FORMAT else None
    except Exception as exc:  # damaged pickles raise anything
        raise TuningError(
            f"{path} cannot be read ({type(exc).__name__}). It is written whole or not at all, so something else "
            "changed it; --restart starts afresh"
        ) from exc
    if state is None:
        raise TuningError(f"{path} was written by another version of mcip-qdrant; --restart starts afresh")
    return state


def save_tensors(value: Mapping[str, Any], path: Path) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        TuningError: the disk is full or not writable; so for the other functions here that write.
    """
    _atomically(path, lambda stream: torch.save(dict(value), stream))


def save_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    _atomically(path, lambda stream: stream.write(text.encode("utf-8")))


def save_lines(lines: Iterable[str], path: Path) -> None:
    """Write a text file as its lines come, whole or not at all."""
    _atomically(path, lambda stream: stream.writelines(line.encode("utf-8") for line in lines))


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, whole or not at all."""
    with source.open("rb") as stream:
        _atomically(path, lambda out: shutil.copyfileobj(stream, out, 1 << 24))


def _atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    # What a killed predecessor left half written; only one run at a time writes here.
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as exc:
        raise _unwritable(path, exc) from exc
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # noqa: PTH101  mkstemp gives a string
        os.replace(name, path)  # noqa: PTH105
    except BaseException as exc:
        Path(name).unlink(missing_ok=True)
        cause = _disk_error(exc) if isinstance(exc, (OSError, RuntimeError)) else None
        if cause is None:
            raise
        raise _unwritable(path, cause) from exc


def _disk_error(exc: BaseException | None) -> OSError | None:
    """What the system said: torch.save turns a full disk into a RuntimeError about its own positions."""
    while exc is not None and not isinstance(exc, OSError):
        exc = exc.__cause__ or exc.__context__
    return exc


def _unwritable(path: Path, cause: OSError) -> TuningError:
    return TuningError(
        f"{path} cannot be written ({cause.strerror or cause}); what was there before stays. The same command goes on from it"
    )


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What a finished run did.

    `start` is the metric before training, `best` that of the weights in `model`; both are None with the metric `last`.
    `history` holds (step, metric). `unreadable` counts distinct image files that could not be used, those for validation too,
    and `replaced` how often another image stood in. `seconds` counts the last start of the run only.
    """

    method: str
    model: Path
    steps: int
    metric: str
    start: float | None
    best: float | None
    best_step: int
    history: list[list[float]]
    unreadable: int
    replaced: int
    stopped_early: bool
    seconds: float
    notices: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `report.json` and `--json`."""
        return {**asdict(self), "model": str(self.model), "notices": list(self.notices)}
