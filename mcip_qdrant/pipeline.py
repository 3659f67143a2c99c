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
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.errors import Reason
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.points import PreparedImage, RunStamp, image_uri, payload, same_file, same_json
from mcip_qdrant.prepare import Prepare, Prepared, Recipe, SameBytes, prepare
from mcip_qdrant.read import FileState, stat_image
from mcip_qdrant.report import DeadLetter, RunReport
from mcip_qdrant.spill import batched
from mcip_qdrant.stages import Encoder, Sink

LOOKUP_BATCH = 256
_WRITE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a run works; what it works on is passed beside it.

    `encodes_at_once`: how many batches the encoder takes side by side. `write_size`: how many points make a request worth its
    while; points wait a second for company at most. `checksum`: compare SHA-256 instead of size and time.
    `columns` gives the user's own payload fields of an image. `uri_roots`: where people find the sources, if that is not where
    this process has them mounted. `prepare` runs one image up to its pixels.
    """

    stamp: RunStamp
    roots: Mapping[str, Path]
    preprocess: Preprocess
    batch_size: int = 16
    encodes_at_once: int = 1
    write_size: int = 1
    decode_threads: int = 2
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    checksum: bool = False
    columns: Callable[[ImageRef], Mapping[str, Any]] = lambda _ref: {}
    uri_roots: Mapping[str, Path] | None = None
    prepare: Prepare = prepare

    @property
    def recipe(self) -> Recipe:
        """What decides the pixels."""
        return Recipe(self.roots, self.preprocess, self.limits, self.stamp.decode)

    def shown_root(self, ref: ImageRef) -> Path:
        """The root that an image's uri begins with."""
        return (self.uri_roots or self.roots)[ref.source]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Called in the run's own thread: after each step, for each dead letter, for images settled either way; and whether to stop."""

    on_progress: Callable[[RunReport], object] = lambda _report: None
    on_failure: Callable[[DeadLetter], object] = lambda _letter: None
    on_settled: Callable[[Sequence[ImageRef]], object] = lambda _refs: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class _Task:
    ref: ImageRef
    previous: Mapping[str, Any]
    columns: Mapping[str, Any]


@dataclass(slots=True)
class _LookedUp:
    """What one look-up found: images to embed, and those that need no embedding with what their points must still learn."""

    tasks: list[_Task] = field(default_factory=list)
    unchanged: list[_Task] = field(default_factory=list)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


_InHand = tuple[PreparedImage, _Task]


def run(
    refs: Iterable[ImageRef], encoder: Encoder, sink: Sink, settings: PipelineSettings, hooks: Hooks | None = None
) -> RunReport:
    """Take references to points.

    One bad image never costs its neighbours: it becomes a dead letter. An unchanged image whose point carries this run's id was
    embedded by an earlier attempt of the same run, and counts so. When `should_stop` turns true, images in hand that are
    already encoded are written, the rest is left for the next run.

    Raises:
        StoreError: Qdrant refused, or stayed away past all retries. What was written before stays; a new run continues.
    """
    return _Run(encoder, sink, settings, hooks or Hooks()).go(refs)


class _Run:
    def __init__(self, encoder: Encoder, sink: Sink, settings: PipelineSettings, hooks: Hooks) -> None:
        self.encoder, self.sink, self.settings, self.hooks = encoder, sink, settings, hooks
        self.report = RunReport()
        self.recipe = settings.recipe
        self.batch: list[_InHand] = []
        self.encoded: list[tuple[list[_InHand], NDArray[np.float32]]] = []
        self.oldest_encoded = 0.0
        self.writes: deque[tuple[Future[None], list[_InHand]]] = deque()
        self.encodes: deque[tuple[Future[NDArray[np.float32]], list[_InHand]]] = deque()
        self.encoders = ThreadPoolExecutor(settings.encodes_at_once, thread_name_prefix="encode")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="upsert")

    def go(self, refs: Iterable[ImageRef]) -> RunReport:
        ahead = 2 * self.settings.batch_size + self.settings.decode_threads
        pending: deque[tuple[_Task, Future[Prepared]]] = deque()
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
            self._submit_write()
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
        upcoming: deque[Future[_LookedUp]] = deque()
        for batch in itertools.chain(batched(refs, LOOKUP_BATCH), [None]):
            if batch is not None:
                self.report.submitted += len(batch)
                upcoming.append(lookups.submit(self._look_up, list(batch)))
            while upcoming and (len(upcoming) > 1 or batch is None):
                found = upcoming.popleft().result()
                self.sink.update_payloads(found.changes)
                self._need_no_work(found.unchanged, len(found.changes))
                if self._stopping():  # here, too: where every image is unchanged, no task ever comes out
                    return
                yield from found.tasks

    def _need_no_work(self, tasks: list[_Task], updated: int) -> None:
        by_this_run = sum(task.previous.get("run_id") == self.settings.stamp.run_id for task in tasks)
        self.report.embedded += by_this_run
        self.report.unchanged += len(tasks) - by_this_run
        self.report.updated += updated
        if tasks:
            self.hooks.on_settled([task.ref for task in tasks])
        self.hooks.on_progress(self.report)

    def _look_up(self, refs: list[ImageRef]) -> _LookedUp:
        known = self.sink.known([ref.point_id for ref in refs])
        found = _LookedUp()
        for ref in refs:
            previous = known.get(ref.point_id)
            task = _Task(ref, previous or {}, self.settings.columns(ref))
            if (
                previous is None
                or self.settings.checksum
                or not same_file(previous, stat_image(self.settings.roots[ref.source], ref))
            ):
                found.tasks.append(task)
                continue
            found.unchanged.append(task)
            if fields := self._changed_fields(task):
                found.changes[ref.point_id] = fields
        return found

    def _changed_fields(self, task: _Task, state: FileState | None = None) -> dict[str, Any]:
        """What an unchanged image's point must still learn: new columns, a moved source's place, a touched file's time."""
        fields = {**task.columns, "uri": image_uri(self.settings.shown_root(task.ref), task.ref)}
        if state is not None:
            fields["modified_at"] = state.modified_at
        return {name: value for name, value in fields.items() if not same_json(task.previous.get(name), value)}

    def _prepare(self, task: _Task) -> Prepared:
        """Read, decode and preprocess one image; runs in a decode thread."""
        known = task.previous.get("sha256") if self.settings.checksum else None
        return self.settings.prepare(task.ref, self.recipe, known, self.report.timed)

    def _take(self, task: _Task, future: Future[Prepared]) -> None:
        prepared = future.result()
        if isinstance(prepared, PreparedImage):
            self.batch.append((prepared, task))
            if len(self.batch) == self.settings.batch_size:
                self._encode()
        elif isinstance(prepared, SameBytes):
            fields = self._changed_fields(task, prepared.state)
            self.sink.update_payloads({task.ref.point_id: fields} if fields else {})
            self._need_no_work([task], 1 if fields else 0)
        else:
            self._fail(task.ref, prepared)

    def _fail(self, ref: ImageRef, letter: DeadLetter) -> None:
        self.report.failed += 1
        self.hooks.on_failure(letter)
        self.hooks.on_settled([ref])
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
        for image, _ in itertools.compress(batch, ~good):
            self._fail(image.ref, DeadLetter(image.ref.key, Reason.NOT_FINITE, "the model gave NaN or infinity for it"))
        kept = list(itertools.compress(batch, good))
        if kept:
            if not self.encoded:
                self.oldest_encoded = monotonic()
            self.encoded.append((kept, vectors[good]))
            enough = sum(len(images) for images, _ in self.encoded) >= self.settings.write_size
            if enough or monotonic() - self.oldest_encoded > _WRITE_AFTER_S:
                self._submit_write()
        while self.writes and (len(self.writes) > 2 or self.writes[0][0].done()):
            self._settle_write()

    def _submit_write(self) -> None:
        if self.encoded:
            images = [image for batch, _ in self.encoded for image in batch]
            vectors = np.concatenate([batch for _, batch in self.encoded])
            self.encoded = []
            self.writes.append((self.writer.submit(self._write, images, vectors), images))

    def _write(self, batch: list[_InHand], vectors: NDArray[np.float32]) -> None:
        settings = self.settings
        with self.report.timed("upsert"):
            payloads = [
                payload(
                    image,
                    settings.shown_root(image.ref),
                    settings.stamp,
                    columns=task.columns,
                    previous=task.previous,
                )
                for image, task in batch
            ]
            self.sink.upsert([image.ref.point_id for image, _ in batch], vectors, payloads)

    def _settle_write(self) -> None:
        future, written = self.writes.popleft()
        future.result()
        self.report.embedded += len(written)
        self.report.replaced += sum(1 for _, task in written if task.previous)
        self.hooks.on_settled([image.ref for image, _ in written])
        self.hooks.on_progress(self.report)
