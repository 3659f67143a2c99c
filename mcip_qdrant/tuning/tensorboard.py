"""A run's figures as a TensorBoard log: `tensorboard --logdir OUTPUT/log`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mcip_qdrant.errors import MissingExtraError
from mcip_qdrant.tuning.listener import Listener

LOG_FOLDER: Final = "log"


class TensorBoardLog:
    """Passes everything on to another listener, and writes figures and notes.

    After a kill the log goes on from the step where the run does: figures of steps that are done again are dropped.
    """

    def __init__(self, folder: Path, listener: Listener) -> None:
        """Raises MissingExtraError if tensorboard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise MissingExtraError(
                'the log needs tensorboard, which is not installed: pip install "mcip-qdrant[tune]", or --no-tensorboard'
            ) from exc
        self._make: Any = SummaryWriter
        self._folder = folder
        self._listener = listener
        self._writer: Any = None

    def begin(self, what: str, total: int, done: int) -> None:
        """Open the log when training starts."""
        self._listener.begin(what, total, done)
        if what == "train":
            self._writer = self._make(str(self._folder), purge_step=done + 1 if done else 0)

    def advance(self, items: int) -> None:
        """Pass on."""
        self._listener.advance(items)

    def values(self, step: int, values: dict[str, float]) -> None:
        """Write one figure per curve."""
        self._listener.values(step, values)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def note(self, text: str) -> None:
        """Pass on."""
        self._listener.note(text)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()
