"""references -> read -> decode -> preprocess -> encode -> points -> sink. The one pipeline: CLI, Celery task and tests call it.

Threads: decoding runs in a pool ahead of the encoder (Pillow and file reads release the GIL), the encoder in as many threads as it
takes batches at once, writing in a thread behind it. Look-ahead is bounded, so memory does not grow with the number of images.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.decode import DecodeLimits, decode
from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.points import PreparedImage, RunStamp, image_uri, payload, same_file
from mcip_qdrant.preprocess import preprocess
from mcip_qdrant.read import FileState, read_image, stat_image
from mcip_qdrant.report import DeadLetter, RunReport

LOOKUP_BATCH = 256


class Encoder(Protocol):
    """Anything that turns uint8 `[B, H, W, 3]` into float32 `[B, D]`, L2 norm 1."""

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode one batch."""
        ...


class Sink(Protocol):
    """Where points go. Methods as in `QdrantSink`."""

    def known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Payloads of those points that exist."""
        ...

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        """Insert or overwrite points."""
        ...

    def update_payloads(self, changes: Mapping[str, dict[str, Any]]) -> None:
        """Set payload fields on existing points."""
        ...


def _no_columns(_ref: ImageRef) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a run works; what it works on is passed beside it.

    `encodes_at_once`: how many batches the encoder takes side by side. `checksum`: compare SHA-256 instead of size and time.
    `columns` gives the user's own payload fields of an image.
    """

    stamp: RunStamp
    roots: Mapping[str, Path]
    preprocess: Preprocess
    batch_size: int = 16
    encodes_at_once: int = 1
    decode_threads: int = 2
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    checksum: bool = False
    columns: Callable[[ImageRef], Mapping[str, Any]] = _no_columns


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks of a run, called in the caller's thread: progress after each step, each dead letter, and whether to stop."""

    on_progress: Callable[[RunReport], object] = lambda _report: None
    on_failure: Callable[[DeadLetter], object] = lambda _letter: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class _Task:
    ref: ImageRef
    previous: Mapping[str, Any]
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """Same bytes as before, found only by reading them (`checksum`)."""

    task: _Task
    state: FileState


_Prepared = PreparedImage | _Unchanged | DeadLetter
_InHand = tuple[PreparedImage, _Task]


def run(
    refs: Iterable[ImageRef], encoder: Encoder, sink: Sink, settings: PipelineSettings, hooks: Hooks | None = None
) -> RunReport:
    """Take references to points.

    One bad image never costs its neighbours: it becomes a dead letter. When `should_stop` turns true, images in hand that are
    already encoded are written, the rest is left for the next run.

    Raises:
        StoreError: Qdrant refused, or stayed away past all retries. What was written before stays; a new run continues.
    """
    return _Run(encoder, sink, settings, hooks or Hooks()).go(refs)


class _Run:
    def __init__(self, encoder: Encoder, sink: Sink, settings: PipelineSettings, hooks: Hooks) -> None:
        self.encoder, self.sink, self.settings, self.hooks = encoder, sink, settings, hooks
        self.report = RunReport()
        self.batch: list[_InHand] = []
        self.writes: deque[tuple[Future[None], int, int]] = deque()
        self.encodes: deque[tuple[Future[NDArray[np.float32]], list[_InHand]]] = deque()
        self.encoders = ThreadPoolExecutor(settings.encodes_at_once, thread_name_prefix="encode")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="upsert")

    def go(self, refs: Iterable[ImageRef]) -> RunReport:
        ahead = 2 * self.settings.batch_size + self.settings.decode_threads
        pending: deque[tuple[_Task, Future[_Prepared]]] = deque()
        decoders = ThreadPoolExecutor(self.settings.decode_threads, thread_name_prefix="decode")
        lookups = ThreadPoolExecutor(1, thread_name_prefix="lookup")
        try:
            for task in self._changed(refs, lookups):
                pending.append((task, decoders.submit(self._prepare, task)))
                while pending and (len(pending) >= ahead or pending[0][1].done()) and not self._stopping():
                    self._take(*pending.popleft())
                if self._stopping():
                    break
            while pending and not self._stopping():
                self._take(*pending.popleft())
            if not self._stopping():
                self._encode()
            while self.encodes:
                self._settle_encode()
            while self.writes:
                self._settle_write()
        finally:
            # Queued decodes are dropped, running ones end by themselves; an upsert in flight is always waited for.
            for executor in (lookups, decoders, self.encoders, self.writer):
                executor.shutdown(wait=True, cancel_futures=True)
        self.report.interrupted = self._stopping()
        return self.report

    def _stopping(self) -> bool:
        return self.hooks.should_stop()

    def _changed(self, refs: Iterable[ImageRef], lookups: ThreadPoolExecutor) -> Iterator[_Task]:
        """Leave out unchanged images. The next look-up runs while this one's images are decoded and encoded."""
        upcoming: deque[Future[tuple[list[_Task], int, dict[str, dict[str, Any]]]]] = deque()
        for batch in itertools.chain(_batched(refs, LOOKUP_BATCH), [None]):
            if batch is not None:
                self.report.submitted += len(batch)
                upcoming.append(lookups.submit(self._look_up, list(batch)))
            while upcoming and (len(upcoming) > 1 or batch is None):
                tasks, unchanged, changes = upcoming.popleft().result()
                self.sink.update_payloads(changes)
                self.report.unchanged += unchanged
                self.report.updated += len(changes)
                self.hooks.on_progress(self.report)
                if self._stopping():  # here, too: where every image is unchanged, no task ever comes out
                    return
                yield from tasks

    def _look_up(self, refs: list[ImageRef]) -> tuple[list[_Task], int, dict[str, dict[str, Any]]]:
        known = self.sink.known([ref.point_id for ref in refs])
        tasks, unchanged, changes = [], 0, {}
        for ref in refs:
            previous = known.get(ref.point_id)
            task = _Task(ref, previous or {}, self.settings.columns(ref))
            if previous is None or self.settings.checksum or not same_file(previous, self._state(ref)):
                tasks.append(task)
                continue
            unchanged += 1
            if fields := self._changed_fields(task):
                changes[ref.point_id] = fields
        return tasks, unchanged, changes

    def _state(self, ref: ImageRef) -> Any:
        return stat_image(self.settings.roots[ref.source], ref)

    def _changed_fields(self, task: _Task, state: FileState | None = None) -> dict[str, Any]:
        """What an unchanged image's point must still learn: new columns, a moved source's place, a touched file's time."""
        fields = {**task.columns, "uri": image_uri(self.settings.roots[task.ref.source], task.ref)}
        if state is not None:
            fields["modified_at"] = state.modified_at
        return {name: value for name, value in fields.items() if task.previous.get(name) != value}

    def _prepare(self, task: _Task) -> _Prepared:
        """Read, decode and preprocess one image; runs in a decode thread."""
        settings, ref = self.settings, task.ref
        try:
            with self.report.timed("read"):
                read = read_image(settings.roots[ref.source], ref, max_bytes=settings.limits.max_bytes)
            if settings.checksum and task.previous.get("sha256") == read.sha256:
                return _Unchanged(task, read.state)
            with self.report.timed("decode"):
                scaled_for = settings.preprocess if settings.stamp.decode == "scaled" else None
                image = decode(read.data, limits=settings.limits, scaled_for=scaled_for)
                pixels = preprocess(image.rgb, settings.preprocess)
        except ImageError as exc:
            return DeadLetter(ref.key, exc.reason, str(exc))
        except MemoryError:
            return DeadLetter(ref.key, Reason.OUT_OF_MEMORY, "not enough memory to decode it")
        return PreparedImage(ref, pixels, read.sha256, image.width, image.height, image.format, read.state)

    def _take(self, task: _Task, future: Future[_Prepared]) -> None:
        prepared = future.result()
        if isinstance(prepared, PreparedImage):
            self.batch.append((prepared, task))
            if len(self.batch) == self.settings.batch_size:
                self._encode()
        elif isinstance(prepared, _Unchanged):
            self.report.unchanged += 1
            if fields := self._changed_fields(task, prepared.state):
                self.sink.update_payloads({task.ref.point_id: fields})
                self.report.updated += 1
            self.hooks.on_progress(self.report)
        else:
            self._fail(prepared)

    def _fail(self, letter: DeadLetter) -> None:
        self.report.failed += 1
        self.hooks.on_failure(letter)
        self.hooks.on_progress(self.report)

    def _encode(self) -> None:
        if not self.batch:
            return
        batch, self.batch = self.batch, []
        self.encodes.append((self.encoders.submit(self._run_encoder, batch), batch))
        # One batch more than the encoder takes waits ready, so that it never waits for the next.
        while self.encodes and (len(self.encodes) > self.settings.encodes_at_once + 1 or self.encodes[0][0].done()):
            self._settle_encode()

    def _run_encoder(self, batch: list[_InHand]) -> NDArray[np.float32]:
        pixels = np.stack([image.pixels for image, _ in batch])
        with self.report.timed("encode"):
            return self.encoder.encode(pixels)

    def _settle_encode(self) -> None:
        future, batch = self.encodes.popleft()
        vectors = future.result()
        good = np.asarray(np.isfinite(vectors).all(axis=1))
        for (image, _), fine in zip(batch, good, strict=True):
            if not fine:
                self._fail(DeadLetter(image.ref.key, Reason.NOT_FINITE, "the model gave NaN or infinity for it"))
        kept = list(itertools.compress(batch, good))
        if kept:
            replaced = sum(1 for _, task in kept if task.previous)
            self.writes.append((self.writer.submit(self._write, kept, vectors[good]), len(kept), replaced))
        while self.writes and (len(self.writes) > 2 or self.writes[0][0].done()):
            self._settle_write()

    def _write(self, batch: list[_InHand], vectors: NDArray[np.float32]) -> None:
        settings = self.settings
        with self.report.timed("upsert"):
            payloads = [
                payload(
                    image,
                    settings.roots[image.ref.source],
                    settings.stamp,
                    columns=task.columns,
                    previous=task.previous,
                )
                for image, task in batch
            ]
            self.sink.upsert([image.ref.point_id for image, _ in batch], vectors, payloads)

    def _settle_write(self) -> None:
        future, count, replaced = self.writes.popleft()
        future.result()
        self.report.embedded += count
        self.report.replaced += replaced
        self.hooks.on_progress(self.report)


def _batched(refs: Iterable[ImageRef], size: int) -> Iterator[tuple[ImageRef, ...]]:
    iterator = iter(refs)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch
