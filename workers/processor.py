"""One chunk, from message to ledger. Everything that may happen to a chunk is decided here."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Final, Protocol

from mcip_qdrant import pipeline
from mcip_qdrant.errors import BrokerError, ConfigurationError, MessageError, Reason, StoreError, StoreUnavailableError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.pipeline import Hooks, PipelineSettings
from mcip_qdrant.prepare import Clock, Prepare, Prepared, Recipe, prepare
from mcip_qdrant.report import DeadLetter, RunReport
from mcip_qdrant.stages import Encoder, Sink
from mcip_qdrant.workers.hands import Hands
from mcip_qdrant.workers.isolated import IsolatedDecoder
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.records import Counts, Ticket

_POLL_S: Final = 0.3
# How long a thread waits for a chunk that another attempt has in hand, before it turns to other work.
_BUSY_S: Final = 5.0
_MAX_POSTPONED: Final = 15
_MAX_PAUSE_S: Final = 30.0
# Attempts that got beyond decoding in a chunk's own name, after the first death, before it is given up.
_MAX_RISKY: Final = 3


class ChunkReturnedError(Exception):
    """The chunk goes back to the queue as it is: the worker is leaving, or another attempt has it in hand."""


class Workplace(Protocol):
    """What a worker offers to its chunks."""

    def check(self, chunk: Chunk) -> None:
        """Refuse what is not for this worker.

        Raises:
            MessageError: another model, or a source that it does not have.
        """
        ...

    def sink_for(self, chunk: Chunk) -> Sink:
        """Where the chunk's points go."""
        ...

    def settings_for(self, chunk: Chunk) -> PipelineSettings:
        """How its images are worked on here."""
        ...


class Log(Protocol):
    """A structured logger."""

    def info(self, event: str, **values: Any) -> Any:
        """Say what happened."""
        ...

    def warning(self, event: str, **values: Any) -> Any:
        """Say what may need attention."""
        ...

    def error(self, event: str, **values: Any) -> Any:
        """Say what went wrong."""
        ...


@dataclass(slots=True)
class _Attempt:
    """What one attempt found out."""

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=monotonic)
    letters: list[DeadLetter] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def settle(self, refs: Any) -> None:
        self.settled.update(ref.relative for ref in refs)


@dataclass(slots=True)
class ChunkProcessor:
    """Works on chunks, several at once in as many threads.

    `budget_s`: how long a chunk may take before what is left of it becomes a chunk of its own. `abort`: called with an error after
    which this worker must not go on. `hands`: what the heartbeat renews the leases of. `stopping`: the worker has been told to leave.
    `on_report`: called after each attempt.
    """

    name: str
    ledger: Ledger
    workplace: Workplace
    encoder: Encoder
    publish: Callable[[Chunk], object]
    abort: Callable[[Exception], object]
    log: Log
    budget_s: float
    memory_mb: int
    hands: Hands = field(default_factory=Hands)
    stopping: threading.Event = field(default_factory=threading.Event)
    on_report: Callable[[RunReport, list[DeadLetter]], object] = lambda _report, _letters: None
    on_progress: Callable[[], object] = lambda: None
    _suspects: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, message: object) -> None:
        """Work on one message. When this returns, the message may be acknowledged.

        Raises:
            ChunkReturnedError: it must go back to the queue.
        """
        try:
            chunk = Chunk.from_message(message)
            self.workplace.check(chunk)
        except MessageError as exc:
            self.log.warning("message refused", why=str(exc))
            self.ledger.refuse(message, str(exc))
            return
        attempt = _Attempt()
        ticket = self._enter(chunk, attempt)
        if ticket.verdict == "go":
            self.hands.take(attempt.token)
            self._attempt(chunk, attempt, ticket)
            self.hands.let_go(attempt.token)
            return
        self.log.info("chunk skipped", run=chunk.run, chunk=chunk.id, why=ticket.verdict)
        if ticket.rest is not None:
            self.publish(ticket.rest)

    def _enter(self, chunk: Chunk, attempt: _Attempt) -> Ticket:
        # Busy: another attempt has it in hand. It will settle it; should its worker die, the heartbeat stops; should it hang, it must not
        # hold up more threads than its own: a returned message stands behind all that wait.
        until = monotonic() + min(_BUSY_S, self.budget_s)
        while (ticket := self.ledger.begin(chunk, self.name, attempt.token)).verdict == "busy":
            if monotonic() > until:
                self.log.info("chunk returned", run=chunk.run, chunk=chunk.id, why="another attempt has it in hand")
                raise ChunkReturnedError
            if self.stopping.wait(_POLL_S):
                raise ChunkReturnedError
        return ticket

    def _give_back(self, chunk: Chunk, attempt: _Attempt) -> None:
        self.ledger.give_back(chunk, self.name, attempt.token)
        self.hands.let_go(attempt.token)

    def _attempt(self, chunk: Chunk, attempt: _Attempt, ticket: Ticket) -> None:
        attempt.started = monotonic()
        try:
            if ticket.risky >= _MAX_RISKY:
                self._give_up(
                    chunk, Reason.CRASHED_WORKER, f"this chunk killed {ticket.crashes} workers outside decoding"
                )
            elif ticket.crashes or chunk.suspect:
                self._suspect(chunk, attempt)
            else:
                self._finish(chunk, attempt, self._run(chunk, attempt, prepare, self.encoder, None))
        except StoreUnavailableError as exc:
            self._postpone(chunk, attempt, exc)
        except StoreError as exc:
            self._give_up(chunk, Reason.QDRANT_REFUSED, str(exc))
        except ConfigurationError as exc:
            self._give_back(chunk, attempt)
            self.abort(exc)
            raise ChunkReturnedError from exc
        except (ChunkReturnedError, BrokerError):
            raise
        except Exception as exc:
            # A broken session or a defect of ours: this worker ends, and until then the chunk stays in its hand, as one that cost it.
            self.abort(exc)
            raise ChunkReturnedError from exc

    def _suspect(self, chunk: Chunk, attempt: _Attempt) -> None:
        """Once more for a chunk that a worker died with: decoded in a child process, one such chunk at a time."""
        with self._suspects, IsolatedDecoder(self.memory_mb) as isolated:
            encoder = _Noting(self.encoder, lambda: self.ledger.note_risk(chunk))
            self._finish(chunk, attempt, self._run(chunk, attempt, isolated, encoder, 1), suspect=True)

    def _run(
        self, chunk: Chunk, attempt: _Attempt, preparer: Prepare, encoder: Encoder, decode_threads: int | None
    ) -> RunReport:
        def step() -> None:
            self.hands.moved(attempt.token)
            self.on_progress()

        def watched(ref: ImageRef, recipe: Recipe, known_sha256: str | None, timed: Clock) -> Prepared:
            prepared = preparer(ref, recipe, known_sha256, timed)
            step()
            return prepared

        self.hands.moved(attempt.token)
        settings = self.workplace.settings_for(chunk)
        settings = replace(settings, prepare=watched, decode_threads=decode_threads or settings.decode_threads)

        def should_stop() -> bool:
            # Never without having done anything: a model slower than the budget would be sent round for ever.
            late = monotonic() - attempt.started > self.budget_s and bool(attempt.settled)
            return late or self.stopping.is_set()

        hooks = Hooks(
            on_progress=lambda _report: step(),
            on_failure=attempt.letters.append,
            on_settled=attempt.settle,
            should_stop=should_stop,
        )
        return pipeline.run(chunk.refs(), encoder, self.workplace.sink_for(chunk), settings, hooks)

    def _finish(self, chunk: Chunk, attempt: _Attempt, report: RunReport, *, suspect: bool = False) -> None:
        done = [relative for relative in chunk.images if relative in attempt.settled]
        rest = [relative for relative in chunk.images if relative not in attempt.settled]
        counts = Counts(len(done), report.embedded, report.unchanged, report.failed)
        if not rest:
            self.ledger.settle(chunk, counts, attempt.letters)
        elif not done:
            self._give_back(chunk, attempt)
            self.log.info("chunk returned", run=chunk.run, chunk=chunk.id, why="the worker leaves")
            raise ChunkReturnedError
        else:
            # What is left of a suspect is one, too: the image that kills may be in it.
            left = replace(chunk.of(rest), suspect=chunk.suspect or suspect)
            if self.ledger.split(chunk, chunk.of(done), counts, attempt.letters, left):
                self.publish(left)
        self.on_report(report, attempt.letters)
        self.log.info(
            "chunk",
            run=chunk.run,
            chunk=chunk.id,
            images=len(done),
            embedded=report.embedded,
            unchanged=report.unchanged,
            failed=report.failed,
            handed_on=len(rest),
            seconds=round(monotonic() - attempt.started, 3),
            **{f"{stage}_seconds": round(seconds, 3) for stage, seconds in report.seconds.items()},
        )

    def _postpone(self, chunk: Chunk, attempt: _Attempt, exc: StoreUnavailableError) -> None:
        if chunk.postponed >= _MAX_POSTPONED:
            self._give_up(chunk, Reason.QDRANT_UNAVAILABLE, str(exc))
            return
        pause = min(2.0**chunk.postponed, self.budget_s, _MAX_PAUSE_S)
        self.log.warning("chunk postponed", run=chunk.run, chunk=chunk.id, why=str(exc), seconds=pause)
        self.stopping.wait(pause)
        self._give_back(chunk, attempt)
        self.publish(replace(chunk, postponed=chunk.postponed + 1))

    def _give_up(self, chunk: Chunk, reason: Reason, why: str) -> None:
        letters = [DeadLetter(ref.key, reason, why) for ref in chunk.refs()]
        self.ledger.settle(chunk, Counts(len(letters), failed=len(letters)), letters)
        self.on_report(RunReport(failed=len(letters)), letters)
        self.log.error(
            "chunk given up", run=chunk.run, chunk=chunk.id, images=len(letters), reason=reason.value, why=why
        )


@dataclass(slots=True)
class _Noting:
    """An encoder that says, before its first batch, that the chunk has left decoding behind."""

    encoder: Encoder
    note: Callable[[], object]
    _noted: bool = False

    def encode(self, pixels: Any) -> Any:
        if not self._noted:
            self._noted = True
            self.note()
        return self.encoder.encode(pixels)
