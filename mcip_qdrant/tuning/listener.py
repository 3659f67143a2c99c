"""Who watches a run: progress bar, TensorBoard, tests."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """What a run tells while it goes on. Only the first process calls it."""

    def begin(self, what: str, total: int, done: int) -> object:
        """Work of `total` items starts, of which `done` were done before."""

    def advance(self, items: int) -> object:
        """So many items are finished."""

    def values(self, step: int, values: dict[str, float]) -> object:
        """Figures of a step."""

    def note(self, text: str) -> object:
        """Something a person should know."""


class Silence:
    """A listener that does nothing."""

    def begin(self, what: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, items: int) -> None:
        """Nothing."""

    def values(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
