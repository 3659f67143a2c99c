"""What a run did: counts, failures, and the seconds each stage took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mcip_qdrant.errors import Reason

Stage = Literal["read", "decode", "encode", "upsert"]
STAGES: tuple[Stage, ...] = ("read", "decode", "encode", "upsert")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One image that could not be embedded, and why."""

    key: str
    reason: Reason
    message: str


@dataclass(slots=True)
class RunReport:
    """Counts of one run. `submitted = embedded + unchanged + failed` once the run is complete.

    `replaced` is the part of `embedded` whose point existed before; `updated` is the part of `unchanged` that got
    new payload fields: the user's columns, or the uri where the source moved.
    """

    submitted: int = 0
    embedded: int = 0
    replaced: int = 0
    unchanged: int = 0
    updated: int = 0
    failed: int = 0
    interrupted: bool = False
    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def done(self) -> int:
        """Images that are settled, one way or another."""
        return self.embedded + self.unchanged + self.failed

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Add the time spent inside to a stage. Stages overlap, so their sum can exceed the run's wall time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - start

    def shares(self) -> dict[Stage, float]:
        """Each stage's share (0..1) of the time that all stages took."""
        total = sum(self.seconds.values()) or 1.0
        return {stage: seconds / total for stage, seconds in self.seconds.items()}
