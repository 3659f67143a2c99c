"""What the ledger says: counts, tickets, dead letters, and what a run is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mcip_qdrant.errors import MessageError, RunError
from mcip_qdrant.report import DeadLetter
from mcip_qdrant.workers.message import Chunk

State = Literal["dispatching", "dispatched", "cancelled"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Images by fate."""

    submitted: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: int = 0

    @property
    def settled(self) -> int:
        """Images whose fate is known."""
        return self.embedded + self.unchanged + self.failed

    @property
    def entry(self) -> str:
        """As an entry of the ledger."""
        return f"d:{self.submitted}:{self.embedded}:{self.unchanged}:{self.failed}"


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What became of a chunk that was to be entered. `to_publish`: its fate is still open."""

    is_new: bool
    to_publish: bool


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to work on a chunk, or the reason not to.

    `crashes`: how many workers died with this chunk in hand; `risky`: how many attempts since the first got beyond decoding and
    were not given back. `rest`: the message that a split chunk promised.
    """

    verdict: Literal["go", "settled", "split", "cancelled", "busy"]
    crashes: int = 0
    risky: int = 0
    rest: Chunk | None = None


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A dead letter, and the user's own payload fields of its image."""

    letter: DeadLetter
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run is about. `sample` is a chunk without images: what all its chunks have in common."""

    run: str
    model: str
    root: str
    state: State
    started_at: float
    sample: dict[str, Any]
    chunk_size: int
    last_at: float = 0.0
    replays: int = 0


def sample_of(info: RunInfo) -> Chunk:
    """What all chunks of a run have in common, as a chunk with one placeholder image.

    Raises:
        RunError: the run was started by another version.
    """
    try:
        return Chunk.from_message(info.sample)
    except MessageError as exc:
        raise RunError(f"run {info.run} was started by another version of mcip-qdrant: {exc}") from exc
