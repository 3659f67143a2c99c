"""The dispatcher: references -> chunks -> queue, never far ahead of the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mcip_qdrant.errors import Reason, RunError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.spill import batched
from mcip_qdrant.workers.broker import queue_name
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.queue import Queues
from mcip_qdrant.workers.records import Counts, RunInfo, sample_of

DEFAULT_CHUNK_SIZE: Final = 256
DEFAULT_LOOK_AHEAD: Final = 64
_POLL_S: Final = 0.25
# Past the visibility timeout, what a dead worker had in hand is in the queue again; this much is for kombu to notice.
_GRACE_S: Final = 5
# A sample chunk stands for what all chunks of a run have in common; a chunk cannot be empty.
_PLACEHOLDER: Final = ("-",)
_CRASHES: Final = frozenset({Reason.CRASHED_DECODER, Reason.CRASHED_WORKER})


class DispatchStoppedError(Exception):
    """The person at the dispatcher, or `cancel`, stopped it before the end of the listing."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks of somebody who waits: counts now and then, whether to stop, and how many lost chunks were sent again."""

    on_counts: Callable[[Counts], object] = lambda _counts: None
    should_stop: Callable[[], bool] = lambda: False
    on_sent_again: Callable[[int], object] = lambda _chunks: None


@dataclass(slots=True)
class Dispatcher:
    """Feeds one run. `look_ahead`: how many chunks may wait in the queue, which bounds what Redis holds."""

    ledger: Ledger
    queues: Queues
    run: str
    sample: Chunk
    watch: Watch
    look_ahead: int = DEFAULT_LOOK_AHEAD
    _expected: int = 0
    _fed: bool = False
    _replayed: set[str] = field(default_factory=set)
    _shown_at: float = 0.0
    _room: int = 0

    def feed(
        self,
        refs: Iterable[ImageRef],
        chunk_size: int,
        columns: Callable[[ImageRef], Mapping[str, Any]] | None = None,
    ) -> None:
        """Dispatch a listing. What the ledger already knows as done is left out, so a run can be continued.

        Raises:
            DispatchStoppedError: somebody stopped it; `--resume` goes on.
            BrokerError: Redis stayed away; `--resume` goes on.
            RunError: Redis lost some of what was dispatched; `--resume` goes on.
        """
        self.ledger.set_state(self.run, "dispatching")
        self._expected = self.ledger.counts(self.run).submitted
        sent = set()
        for chunk in self.ledger.promised(self.run):
            self._send(chunk)
            sent.add(chunk.id)
        for images in batched(refs, chunk_size):
            relative = tuple(ref.relative for ref in images)
            rows = {ref.relative: dict(columns(ref)) for ref in images} if columns else {}
            chunk = replace(self.sample, images=relative, columns={name: row for name, row in rows.items() if row})
            dispatched = self.ledger.dispatch(chunk)
            if dispatched.is_new:
                self._expected += len(images)
            if dispatched.to_publish and chunk.id not in sent:
                self._send(chunk)
            else:
                self._look()
        self._check_nothing_was_lost(self.ledger.counts(self.run))
        self.ledger.all_dispatched(self.run)
        self._fed = True

    def _check_nothing_was_lost(self, counts: Counts) -> None:
        """A power cut or a failover can cost Redis its last second, chunks and their messages alike: nobody would ever miss them."""
        if counts.submitted < self._expected:
            self.ledger.set_state(self.run, "dispatching")
            raise RunError(
                f"Redis knows of {counts.submitted} of the {self._expected} images that run {self.run} dispatched: it lost the rest. "
                f"Go on: --resume {self.run}"
            )

    def replay(self, chunk_size: int) -> int:
        """Dispatch the run's dead letters again, and replays that were cut short; returns how many images.

        Raises:
            DispatchStoppedError, BrokerError: as `feed`.
        """
        replayed = 0
        for chunk in self.ledger.promised(self.run):
            if chunk.generation:
                self._replayed.add(chunk.id)
                self._send(chunk)
                replayed += len(chunk.images)
        prefix = f"{self.sample.source}/"
        failed = {item.letter.key.removeprefix(prefix): item for item in self.ledger.failures(self.run)}
        if not failed:
            return replayed
        generation = self.ledger.next_generation(self.run)
        for suspect in (False, True):
            chosen = sorted(name for name, item in failed.items() if (item.letter.reason in _CRASHES) == suspect)
            for images in batched(chosen, chunk_size):
                columns = {name: failed[name].columns for name in images if failed[name].columns}
                chunk = replace(self.sample, images=images, generation=generation, suspect=suspect, columns=columns)
                if self.ledger.replay(chunk):
                    self._replayed.add(chunk.id)
                    self._send(chunk)
                    replayed += len(images)
        return replayed

    def wait(self) -> Counts:
        """Wait until every dispatched image has met its fate, or, after a replay, every replayed one; lost chunks are sent again.

        Raises:
            DispatchStoppedError: somebody does not want to wait any longer, or the run was cancelled.
            RunError: Redis lost some of what was dispatched; `--resume` goes on.
        """
        before, since = Counts(), time.monotonic()
        while True:
            counts = self._look(at_once=True)
            if self._replayed:
                self._replayed = self.ledger.open_of(self.run, self._replayed)
                if not self._replayed:
                    return counts
            elif counts.settled >= counts.submitted:
                self._check_nothing_was_lost(counts)
                if self._fed:
                    self.ledger.all_dispatched(self.run)  # Redis may have lost that, too
                return counts
            if counts != before:
                before, since = counts, time.monotonic()
            elif time.monotonic() - since > self.ledger.settings.visibility_timeout_s + _GRACE_S:
                self._send_lost()
                since = time.monotonic()
            time.sleep(_POLL_S)

    def _send_lost(self) -> None:
        """Chunks that nobody has in hand and that cannot all be in the queue.

        kombu takes a message off the queue and notes it as unacknowledged in two steps: a worker killed in between takes it along.
        """
        unheld = [chunk for chunk in self.ledger.unheld(self.run) if not self._replayed or chunk.id in self._replayed]
        if self.queues.length([queue_name(self.sample.space_id, self.sample.source)]) >= len(unheld):
            return
        for chunk in unheld:
            self.queues.publish(chunk)
        self.watch.on_sent_again(len(unheld))

    def _send(self, chunk: Chunk) -> None:
        while self._room <= 0:
            self._look()
            waiting = self.queues.length([queue_name(chunk.space_id, chunk.source)])
            self._room = self.look_ahead - waiting
            if self._room <= 0:
                time.sleep(_POLL_S)
        self.queues.publish(chunk)
        self._room -= 1

    def _look(self, *, at_once: bool = False) -> Counts:
        """Show the counts, not too often, and see whether to go on."""
        if self.watch.should_stop():
            raise DispatchStoppedError
        now = time.monotonic()
        if not at_once and now - self._shown_at < 2 * _POLL_S:
            return Counts()
        self._shown_at = now
        try:
            state = self.ledger.info(self.run).state
        except RunError as exc:
            raise RunError(
                f"Redis does not know run {self.run} any more: it was emptied, or lost its data. Points already written stay; "
                "start a new run"
            ) from exc
        if state == "cancelled":
            raise DispatchStoppedError(f"run {self.run} was cancelled; --resume {self.run} goes on with it")
        counts = self.ledger.counts(self.run)
        self.watch.on_counts(counts)
        return counts


def open_run(ledger: Ledger, sample: Chunk, model: str, root: str, chunk_size: int = DEFAULT_CHUNK_SIZE) -> None:
    """Enter a new run in the ledger."""
    sample = replace(sample, images=_PLACEHOLDER, columns={})
    ledger.open_run(RunInfo(sample.run, model, root, "dispatching", time.time(), sample.to_message(), chunk_size))


def resume_run(ledger: Ledger, run: str, wanted: Chunk) -> tuple[Chunk, int]:
    """The sample chunk and chunk size of a run that goes on, which must be about the same model, collection and source.

    The size is that of the first sitting: chunks cut otherwise would count their images again.

    Raises:
        RunError: unknown run, or one about something else.
    """
    info = ledger.info(run)
    sample = sample_of(info)
    for name in ("collection", "space_id", "source", "decode", "checksum"):
        before, now = getattr(sample, name), getattr(wanted, name)
        if before != now:
            raise RunError(f"--resume {run}: its {name} is {before!r}, not {now!r}; start a new run instead")
    return sample, info.chunk_size
