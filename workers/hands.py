"""What a worker has in hand: the attempts whose leases its heartbeat renews, and how long each has stood still."""

from __future__ import annotations

import threading
from time import monotonic


class Hands:
    """Attempts at chunks by token; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved: dict[str, float | None] = {}

    def take(self, token: str) -> None:
        """An attempt begins; its clock stands until it first moves."""
        with self._lock:
            self._moved[token] = None

    def moved(self, token: str) -> None:
        """Something of it was read, encoded or written, or its turn has come."""
        with self._lock:
            if token in self._moved:
                self._moved[token] = monotonic()

    def let_go(self, token: str) -> None:
        """Its chunk is settled, split or given back."""
        with self._lock:
            self._moved.pop(token, None)

    def tokens(self) -> list[str]:
        """All attempts in hand."""
        with self._lock:
            return list(self._moved)

    def still_for(self) -> float:
        """Seconds for which the attempt that moved longest ago has stood still; 0 if there is none."""
        with self._lock:
            return monotonic() - min((at for at in self._moved.values() if at is not None), default=monotonic())

    def __len__(self) -> int:
        return len(self._moved)
