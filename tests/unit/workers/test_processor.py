"""What becomes of one chunk: real ledger, real pipeline, real pictures and a real collection; only the model is a predictable one."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from unit_support import SPACE_A, SPACE_B, MeanColour, manifest, picture
from worker_support import RUN, SOURCE, all_embedded, check_sums, chunk, living, part

from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.errors import (
    BrokerError,
    MessageError,
    Reason,
    SpaceMismatchError,
    StoreError,
    StoreUnavailableError,
)
from mcip_qdrant.pipeline import PipelineSettings
from mcip_qdrant.points import RunStamp
from mcip_qdrant.report import DeadLetter, RunReport
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.stages import Encoder, Sink
from mcip_qdrant.store import Store
from mcip_qdrant.workers import processor
from mcip_qdrant.workers.guard import GuardedSink
from mcip_qdrant.workers.hands import Hands
from mcip_qdrant.workers.ledger import LEASE_PREFIX, Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.processor import ChunkProcessor, ChunkReturnedError
from mcip_qdrant.workers.records import Counts, Ticket

pytestmark = pytest.mark.timeout(60)

BATCH = 4


class Before:
    """The mean colour, with something happening before each batch."""

    def __init__(self, before: Callable[[], object]) -> None:
        self.inner, self.before = MeanColour(), before

    @property
    def batches(self) -> list[int]:
        return self.inner.batches

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.before()
        return self.inner.encode(pixels)


class Watched:
    """A real sink that notes what is asked of it, and fails on demand: `error` from the call number `after` of `operation` on."""

    def __init__(self, sink: Sink, shop: Shop) -> None:
        self.sink, self.shop = sink, shop

    def _pass(self, operation: str) -> None:
        self.shop.asked.append(operation)
        if (
            self.shop.error is not None
            and operation == self.shop.operation
            and self.shop.asked.count(operation) > self.shop.after
        ):
            raise self.shop.error

    def known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        self._pass("known")
        return self.sink.known(ids)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        self._pass("upsert")
        self.sink.upsert(ids, vectors, payloads)

    def update_payloads(self, changes: Mapping[str, dict[str, Any]]) -> None:
        self._pass("update_payloads")
        self.sink.update_payloads(changes)


class Log:
    """Keeps what is logged."""

    def __init__(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        self.events = events

    def info(self, event: str, **values: Any) -> None:
        self.events.append((event, values))

    warning = error = info


class Shop:
    """The workplace of some workers, and what became of their chunks."""

    def __init__(self, ledger: Ledger, root: Path, store: Store) -> None:
        self.ledger, self.root, self.store = ledger, root, store
        self.published: list[Chunk] = []
        self.aborted: list[Exception] = []
        self.reports: list[tuple[RunReport, list[DeadLetter]]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.operation, self.after = "upsert", 0
        self.progress = 0

    def fill(self, count: int) -> list[str]:
        names = [f"{number:02d}.png" for number in range(count)]
        for number, name in enumerate(names):
            picture(self.root / name, (250, 5 + number, 9))
        return names

    def chunk(self, count: int, **changes: Any) -> Chunk:
        return chunk(*self.fill(count), **changes)

    def worker(self, encoder: Encoder | None = None, name: str = "w", **options: Any) -> ChunkProcessor:
        """A worker that lives."""
        living(self.ledger, name)
        chosen: dict[str, Any] = {"budget_s": 60.0, "memory_mb": 1000, "publish": self.published.append, **options}
        return ChunkProcessor(
            name=name,
            ledger=self.ledger,
            workplace=self,
            encoder=encoder or MeanColour(),
            abort=self.aborted.append,
            log=Log(self.events),
            on_report=lambda report, letters: self.reports.append((report, list(letters))),
            on_progress=self.step,
            **chosen,
        )

    def step(self) -> None:
        self.progress += 1

    def kill(self, name: str) -> None:
        """Its heartbeat stops."""
        self.ledger.leave(name)

    # Workplace.

    def check(self, chunk: Chunk) -> None:
        if chunk.space_id != SPACE_A:
            raise MessageError(f"for space_id {chunk.space_id[:12]}")
        if chunk.source != SOURCE:
            raise MessageError(f"for source {chunk.source!r}")

    def sink_for(self, chunk: Chunk) -> Sink:
        return Watched(GuardedSink(QdrantSink(self.store, chunk.collection, 1), manifest()), self)

    def settings_for(self, chunk: Chunk) -> PipelineSettings:
        return PipelineSettings(
            stamp=RunStamp(chunk.run, chunk.ingested_at, chunk.decode),
            roots={chunk.source: self.root},
            preprocess=manifest().preprocess,
            batch_size=BATCH,
            limits=DecodeLimits(max_bytes=chunk.max_bytes, max_pixels=chunk.max_pixels),
            checksum=chunk.checksum,
            columns=lambda ref: chunk.columns.get(ref.relative, {}),
        )

    # What came of it.

    def points(self) -> dict[str, dict[str, Any]]:
        records, _ = self.store.call(lambda client: client.scroll("images", limit=10_000))
        return {
            record.payload["key"].removeprefix(f"{SOURCE}/"): record.payload for record in records if record.payload
        }

    def failed(self) -> dict[str, Reason]:
        return {item.letter.key.removeprefix(f"{SOURCE}/"): item.letter.reason for item in self.ledger.failures(RUN)}

    def ticket(self, of: Chunk) -> Ticket:
        """What the next worker would hear."""
        return self.ledger.begin(of, "next", "next")

    def finish(self, worker: ChunkProcessor) -> int:
        """Work on all that was published, and on what comes of that; returns how many chunks those were."""
        done = 0
        while self.published:
            worker.handle(sent(self.published.pop(0)))
            done += 1
        return done


def sent(chunk: Chunk) -> dict[str, Any]:
    message = chunk.to_message()
    return {**message, "images": list(message["images"])}


@pytest.fixture
def shop(ledger: Ledger, tmp_path: Path) -> Iterator[Shop]:
    store = Store.of(QdrantClient(":memory:"))
    ensure_collection(store, "images", manifest(), {})
    (tmp_path / "root").mkdir()
    yield Shop(ledger, tmp_path / "root", store)
    store.close()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    names = ("decode", "encode", "upsert", "lookup")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(names)] == []
    assert multiprocessing.active_children() == []


# An ordinary chunk.


def test_a_chunk(shop: Shop) -> None:
    names = shop.fill(11)
    (shop.root / names[3]).write_bytes(b"no picture")
    picture(shop.root / names[5], (0, 0, 0))
    columns = {names[0]: {"tag": "ä"}, names[3]: {"tag": "lost"}}
    whole = chunk(*names, "gone.png", columns=columns)
    encoder = MeanColour()
    shop.worker(encoder).handle(sent(whole))
    assert check_sums(shop.ledger) == Counts(12, 9, 0, 3)
    failed = {names[3]: Reason.NOT_AN_IMAGE, names[5]: Reason.NOT_FINITE, "gone.png": Reason.GONE}
    assert shop.failed() == failed
    assert {item.letter.key: item.columns for item in shop.ledger.failures(RUN)}[f"s/{names[3]}"] == {"tag": "lost"}
    points = shop.points()
    assert set(points) == set(names) - set(failed)
    assert {point["run_id"] for point in points.values()} == {RUN}
    assert points[names[0]]["tag"] == "ä"
    ((report, letters),) = shop.reports
    assert (report.embedded, report.failed, len(letters)) == (9, 3, 3)
    assert shop.progress > 0
    assert [event for event, _ in shop.events] == ["chunk"]
    assert shop.events[0][1]["embedded"] == 9
    assert shop.published == shop.aborted == []
    assert shop.ticket(whole) == Ticket("settled")


def test_images_of_an_earlier_run_are_unchanged_and_of_this_run_embedded(shop: Shop) -> None:
    names = shop.fill(9)
    worker = shop.worker()
    worker.handle(sent(chunk(*names[:3], run="run-0")))
    worker.handle(sent(chunk(*names[:6])))
    worker.handle(sent(chunk(*names)))  # packed anew, say
    assert check_sums(shop.ledger, "run-0") == Counts(3, 3)
    first, second = (report for report, _ in shop.reports[1:])
    assert (first.embedded, first.unchanged) == (3, 3)
    assert (second.embedded, second.unchanged) == (6, 3)


# Messages that are not for this worker.


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({**sent(chunk()), "format": 2}, "message of format 2"),
        (sent(chunk(space_id=SPACE_B)), "for space_id bbbbbbbbbbbb"),
        (sent(chunk(source="elsewhere")), "for source 'elsewhere'"),
        ({**sent(chunk()), "images": "a.png"}, "images"),
        ({**sent(chunk()), "decode": ["exact"]}, "decode"),
        ({**sent(chunk()), "run": "\ud800"}, "run"),
        (["not", "a", "chunk"], "not a chunk"),
        (None, "not a chunk"),
    ],
)
def test_a_refused_message_is_kept(shop: Shop, message: Any, why: str) -> None:
    encoder = MeanColour()
    shop.worker(encoder).handle(message)  # and so it is acknowledged: no worker of this version could do better
    (refused,) = shop.ledger.refused()
    assert why in refused["why"]
    assert refused["message"] == message
    assert [event for event, _ in shop.events] == ["message refused"]
    assert (encoder.batches, shop.asked, shop.published, shop.aborted, shop.reports) == ([], [], [], [], [])
    assert list(shop.ledger.redis.scan_iter("mcip_qdrant:run:*")) == []


# Time.


def test_a_chunk_that_takes_too_long_is_split(shop: Shop) -> None:
    whole = shop.chunk(60)
    (shop.root / whole.images[1]).write_bytes(b"x")
    encoder = Before(lambda: time.sleep(0.05))
    worker = shop.worker(encoder, budget_s=0.15)
    shop.ledger.dispatch(whole)
    worker.handle(sent(whole))
    (rest,) = shop.published
    done = [name for name in whole.images if name not in rest.images]
    assert rest == whole.of([name for name in whole.images if name in rest.images])  # in order, and nothing else is new
    assert 0 < len(done) < 60
    counts = check_sums(shop.ledger)
    assert counts.submitted == 60
    assert counts.settled == len(done)
    assert (counts.failed, shop.failed()) == (1, {whole.images[1]: Reason.NOT_AN_IMAGE})
    assert set(shop.points()) == set(done) - {whole.images[1]}
    assert part(shop.ledger, "chunks")[rest.id] == f"p:{len(rest.images)}"
    assert list(shop.ledger.promised(RUN)) == [rest]
    assert shop.events[-1][1]["handed_on"] == len(rest.images)
    assert shop.finish(worker) > 1
    assert check_sums(shop.ledger) == Counts(60, 59, 0, 1)
    assert sum(encoder.batches) == 59, "nothing was done twice"
    assert list(shop.ledger.promised(RUN)) == []


@pytest.mark.parametrize("kind", ["new", "failing", "unchanged"])
def test_a_model_slower_than_any_budget_still_gets_through(shop: Shop, kind: str) -> None:
    whole = shop.chunk(13)
    if kind == "unchanged":
        shop.worker().handle(sent(replace(whole, run="run-0")))
    if kind == "failing":
        for name in whole.images:
            (shop.root / name).write_bytes(b"x")
    worker = shop.worker(budget_s=0.0)
    shop.published.append(whole)
    left = [len(whole.images)]
    while shop.published:
        assert len(shop.published) == 1
        assert len(left) < 20, "sent round and round"
        worker.handle(sent(shop.published.pop()))
        left.append(sum(len(one.images) for one in shop.published))
        assert left[-1] < left[-2]
        if kind == "new":
            assert left[-2] - left[-1] >= min(BATCH, left[-2]), "at least a batch"
    expected = {"new": Counts(13, 13), "failing": Counts(13, failed=13), "unchanged": Counts(13, unchanged=13)}
    assert check_sums(shop.ledger) == expected[kind]


# A worker that leaves.


def test_a_leaving_worker_returns_what_it_has_not_begun(shop: Shop) -> None:
    whole, encoder = shop.chunk(9), MeanColour()
    worker = shop.worker(encoder)
    worker.stopping.set()
    with pytest.raises(ChunkReturnedError):
        worker.handle(sent(whole))
    assert check_sums(shop.ledger) == Counts(9)
    assert shop.ticket(whole) == Ticket("go"), "not a crash, although the worker is still there"
    assert (encoder.batches, shop.points(), shop.published, shop.aborted, shop.reports) == ([], {}, [], [], [])


def test_a_leaving_worker_hands_on_the_rest_of_what_it_has_begun(shop: Shop) -> None:
    whole = shop.chunk(60)
    worker = shop.worker(Before(lambda: len(shop.asked) > 3 and worker.stopping.set()))
    worker.handle(sent(whole))
    (rest,) = shop.published
    done = len(whole.images) - len(rest.images)
    assert 0 < done < 60
    assert check_sums(shop.ledger) == Counts(60, done)
    assert len(shop.points()) == done
    assert shop.finish(shop.worker(name="other")) == 1
    assert check_sums(shop.ledger) == Counts(60, 60)


def test_a_leaving_worker_does_not_wait_for_others(shop: Shop) -> None:
    whole = shop.chunk(3)
    living(shop.ledger, "other")
    shop.ledger.begin(whole, "other", "1")
    worker = shop.worker()
    threading.Timer(0.2, worker.stopping.set).start()
    started = time.monotonic()
    with pytest.raises(ChunkReturnedError):
        worker.handle(sent(whole))
    assert time.monotonic() - started < 10
    shop.kill("other")
    assert shop.ticket(whole) == Ticket("go", crashes=1), "the other's mark is still there"


# Qdrant.


def test_qdrant_away(shop: Shop) -> None:
    whole = shop.chunk(3, suspect=False, columns={"00.png": {"n": 1}})
    shop.ledger.dispatch(whole)
    shop.error, shop.operation = StoreUnavailableError("Qdrant is away"), "known"
    shop.worker(budget_s=0.0).handle(sent(whole))
    assert shop.published == [replace(whole, postponed=1)]
    assert shop.published[0].id == whole.id
    assert check_sums(shop.ledger) == Counts(3)
    assert shop.ticket(whole) == Ticket("go"), "it was given back"
    assert [event for event, _ in shop.events] == ["chunk postponed"]
    assert shop.aborted == shop.reports == []


def test_qdrant_comes_back(shop: Shop) -> None:
    """What was written before it went away counts as embedded by this run."""
    whole, worker = shop.chunk(20), shop.worker(budget_s=1.0)
    shop.error, shop.after = StoreUnavailableError("Qdrant is away"), 2
    worker.handle(sent(whole))
    written = len(shop.points())
    assert 0 < written < 20
    assert check_sums(shop.ledger) == Counts(20)
    shop.error = None
    shop.finish(worker)
    assert check_sums(shop.ledger) == Counts(20, 20)
    assert len(shop.points()) == 20


def test_qdrant_away_for_good(shop: Shop) -> None:
    whole = shop.chunk(3, columns={"00.png": {"n": 1}})
    shop.error = StoreUnavailableError("Qdrant is away")
    worker = shop.worker(budget_s=0.0)
    shop.published.append(whole)
    assert shop.finish(worker) == 16
    assert [event for event, _ in shop.events] == ["chunk postponed"] * 15 + ["chunk given up"]
    assert check_sums(shop.ledger) == Counts(3, failed=3)
    assert shop.failed() == dict.fromkeys(whole.images, Reason.QDRANT_UNAVAILABLE)
    ((report, letters),) = shop.reports
    assert (report.failed, len(letters)) == (3, 3)
    # And a replay brings them in.
    shop.error = None
    (shop.root / "01.png").unlink()
    again = replace(whole, generation=1)
    assert shop.ledger.replay(again)
    shop.worker().handle(sent(again))
    assert check_sums(shop.ledger) == Counts(3, 2, 0, 1)
    assert shop.points()["00.png"]["n"] == 1


def test_pauses_grow_but_not_beyond_the_budget_and_end_when_the_worker_leaves(shop: Shop) -> None:
    shop.error, shop.operation = StoreUnavailableError("Qdrant is away"), "known"
    paused = []
    for postponed, budget_s in ((0, 0.0), (0, 0.2), (3, 0.1), (9, 60.0), (14, 20.0)):
        worker = shop.worker(budget_s=budget_s)
        if budget_s > 1:
            threading.Timer(0.1, worker.stopping.set).start()
        started = time.monotonic()
        worker.handle(sent(shop.chunk(1, postponed=postponed)))
        assert time.monotonic() - started < 5
        paused.append(shop.events[-1][1]["seconds"])
        assert shop.published[-1].postponed == postponed + 1
    assert paused == [0.0, 0.2, 0.1, 30.0, 20.0]


def test_qdrant_refuses(shop: Shop) -> None:
    whole = shop.chunk(20)
    shop.error, shop.after = StoreError("Wrong input"), 1
    shop.worker().handle(sent(whole))
    assert 0 < len(shop.points()) < 20
    assert check_sums(shop.ledger) == Counts(20, failed=20)
    assert set(shop.failed().values()) == {Reason.QDRANT_REFUSED}
    assert {item.letter.message for item in shop.ledger.failures(RUN)} == {"Wrong input"}
    assert shop.published == shop.aborted == []


def test_the_collection_was_replaced_under_the_worker(shop: Shop) -> None:
    whole = shop.chunk(6)
    shop.store.call(lambda client: client.delete_collection("images"))
    ensure_collection(shop.store, "images", manifest(model="Tiny-B", space_id=SPACE_B), {})
    with pytest.raises(ChunkReturnedError):
        shop.worker().handle(sent(whole))
    (error,) = shop.aborted
    assert isinstance(error, SpaceMismatchError)
    assert "Tiny-B" in str(error)
    assert shop.points() == {}
    assert check_sums(shop.ledger) == Counts(6)
    assert shop.ticket(whole) == Ticket("go"), "this worker ends, but the chunk did nothing wrong"


def test_the_collection_is_gone(shop: Shop) -> None:
    shop.store.call(lambda client: client.delete_collection("images"))
    shop.worker().handle(sent(shop.chunk(6)))
    assert set(shop.failed().values()) == {Reason.QDRANT_REFUSED}
    assert shop.aborted == []


# Crashes.


def broken() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_defect_ends_the_worker_and_leaves_the_chunk_marked(shop: Shop) -> None:
    whole = shop.chunk(6)
    with pytest.raises(ChunkReturnedError):
        shop.worker(Before(broken)).handle(sent(whole))
    assert [str(error) for error in shop.aborted] == ["CUDA error: an illegal memory access was encountered"]
    assert shop.ticket(whole) == Ticket("busy"), "as long as the worker has not ended"
    shop.kill("w")
    assert shop.ticket(whole) == Ticket("go", crashes=1)
    assert check_sums(shop.ledger) == Counts(6)


def test_redis_away_is_nobodys_crash(shop: Shop) -> None:
    def away(_chunk: Chunk) -> None:
        raise BrokerError("Redis is away")

    shop.error, shop.operation = StoreUnavailableError("Qdrant is away"), "known"
    with pytest.raises(BrokerError, match="Redis is away"):
        shop.worker(publish=away, budget_s=0.0).handle(sent(shop.chunk(2)))
    assert shop.aborted == []


def crashed_once(shop: Shop, whole: Chunk) -> None:
    """A worker died with this chunk in hand."""
    shop.ledger.begin(whole, "dead", "dead")


LARGE = (4000, 3000)


@pytest.mark.parametrize("why", ["crashed", "suspect"])
def test_a_suspect_is_decoded_in_a_child(shop: Shop, why: str) -> None:
    """The child has little memory: what the worker itself would decode easily, it cannot."""
    names = shop.fill(6)
    picture(shop.root / names[2], (9, 8, 7), LARGE)
    whole = chunk(*names, suspect=why == "suspect")
    if why == "crashed":
        crashed_once(shop, whole)
    seen: list[tuple[int, dict[str, str]]] = []
    encoder = Before(lambda: seen.append((len(multiprocessing.active_children()), part(shop.ledger, "risky"))))
    shop.worker(encoder, memory_mb=24).handle(sent(whole))
    failed = shop.failed()
    assert list(failed) == [names[2]]
    assert failed[names[2]] in {Reason.OUT_OF_MEMORY, Reason.CRASHED_DECODER}
    assert check_sums(shop.ledger) == Counts(6, 5, 0, 1)
    assert set(shop.points()) == set(names) - {names[2]}
    assert seen == [(1, {whole.id: "1"})] * len(encoder.batches), "the risk is noted once, before the first batch"
    assert part(shop.ledger, "risky") == part(shop.ledger, "crashes") == {}


def test_an_ordinary_chunk_is_not(shop: Shop) -> None:
    names = shop.fill(2)
    picture(shop.root / names[1], (9, 8, 7), LARGE)
    encoder = Before(lambda: noted.append(part(shop.ledger, "risky")))
    noted: list[dict[str, str]] = []
    shop.worker(encoder, memory_mb=24).handle(sent(chunk(*names)))
    assert check_sums(shop.ledger) == Counts(2, 2)
    assert noted == [{}]


def test_the_rest_of_a_suspect_is_one(shop: Shop) -> None:
    whole = shop.chunk(30)
    crashed_once(shop, whole)
    shop.worker(budget_s=0.0).handle(sent(whole))
    (rest,) = shop.published
    assert rest.suspect
    assert replace(rest, suspect=False) == whole.of(rest.images)
    assert check_sums(shop.ledger).submitted == 30
    assert shop.finish(shop.worker()) == 1
    assert check_sums(shop.ledger) == Counts(30, 30)


def test_one_suspect_at_a_time(shop: Shop) -> None:
    names = shop.fill(8)
    children: list[int] = []
    worker = shop.worker(Before(lambda: children.append(len(multiprocessing.active_children()))))
    parts = [chunk(*names[:4], suspect=True), chunk(*names[4:], suspect=True)]
    threads = [threading.Thread(target=worker.handle, args=(sent(one),)) for one in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert children == [1, 1]
    assert check_sums(shop.ledger) == Counts(8, 8)


def test_a_chunk_that_kills_workers_beyond_decoding_is_given_up(shop: Shop) -> None:
    whole = shop.chunk(3)
    deaths = 0
    for number in range(10):
        name = f"w{number}"
        try:
            shop.worker(Before(broken), name).handle(sent(whole))
        except ChunkReturnedError:
            shop.kill(name)  # as if it had died
            deaths += 1
        else:
            break
    assert deaths == 4, "the first may have died of anything; three more were beyond decoding"
    assert check_sums(shop.ledger) == Counts(3, failed=3)
    assert shop.failed() == dict.fromkeys(whole.images, Reason.CRASHED_WORKER)
    assert {item.letter.message for item in shop.ledger.failures(RUN)} == {
        "this chunk killed 4 workers outside decoding"
    }
    assert shop.events[-1][0] == "chunk given up"
    assert shop.ticket(whole) == Ticket("settled")


def test_a_suspect_that_only_qdrant_holds_up_kills_nobody(shop: Shop) -> None:
    whole = shop.chunk(3)
    crashed_once(shop, whole)
    shop.error = StoreUnavailableError("Qdrant takes no writes")
    worker = shop.worker(budget_s=0.0)
    shop.published.append(whole)
    for _ in range(4):
        worker.handle(sent(shop.published.pop()))
    assert [event for event, _ in shop.events] == ["chunk postponed"] * 4
    shop.error = None
    shop.finish(worker)
    assert check_sums(shop.ledger) == Counts(3, 3)


# Redelivery.


def test_a_settled_chunk_delivered_again_costs_nothing(shop: Shop) -> None:
    whole = shop.chunk(6)
    shop.worker().handle(sent(whole))
    before, asked, encoder = shop.points(), list(shop.asked), MeanColour()
    for name in ("w", "v"):
        shop.worker(encoder, name).handle(sent(whole))
    assert (shop.points(), shop.asked, encoder.batches) == (before, asked, [])
    assert [(event, values.get("why")) for event, values in shop.events[1:]] == [("chunk skipped", "settled")] * 2
    assert check_sums(shop.ledger) == Counts(6, 6)
    assert len(shop.reports) == 1


def test_a_split_chunk_delivered_again_publishes_its_rest_again(shop: Shop) -> None:
    """Whoever split it may have died before the rest was published."""
    whole = shop.chunk(30)
    worker = shop.worker(budget_s=0.0)
    worker.handle(sent(whole))
    (rest,) = shop.published
    before = check_sums(shop.ledger)
    worker.handle(sent(whole))
    assert shop.published == [rest, rest]
    assert check_sums(shop.ledger) == before
    shop.finish(shop.worker())  # both copies
    assert check_sums(shop.ledger) == Counts(30, 30)
    worker.handle(sent(whole))
    assert shop.published == []


def test_a_cancelled_chunk_is_dropped(shop: Shop) -> None:
    whole, encoder = shop.chunk(3), MeanColour()
    shop.ledger.dispatch(whole)
    shop.ledger.set_state(RUN, "cancelled")
    shop.worker(encoder).handle(sent(whole))
    assert (encoder.batches, shop.points()) == ([], {})
    assert shop.events[-1] == ("chunk skipped", {"run": RUN, "chunk": whole.id, "why": "cancelled"})
    assert check_sums(shop.ledger) == Counts(3)


class Held:
    """An encoder that waits at its first batch until it is let go."""

    def __init__(self) -> None:
        self.inner, self.reached, self.go = MeanColour(), threading.Event(), threading.Event()

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.reached.set()
        assert self.go.wait(30)
        return self.inner.encode(pixels)


def started(worker: ChunkProcessor, of: Chunk) -> threading.Thread:
    thread = threading.Thread(target=worker.handle, args=(sent(of),))
    thread.start()
    return thread


@pytest.mark.parametrize("names", [("one", "two"), ("one", "one")])
def test_two_workers_with_the_same_chunk(shop: Shop, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one worker with two copies of it."""
    monkeypatch.setattr(processor, "_BUSY_S", 60)
    whole = shop.chunk(6)
    held, other = Held(), MeanColour()
    first = started(shop.worker(held, names[0]), whole)
    assert held.reached.wait(20)
    second = started(shop.worker(other, names[1]), whole)
    second.join(0.7)
    assert second.is_alive(), "it waits"
    held.go.set()
    first.join(20)
    second.join(20)
    assert not first.is_alive()
    assert not second.is_alive()
    assert (sum(held.inner.batches), other.batches) == (6, [])
    assert [(event, values.get("why")) for event, values in shop.events] == [
        ("chunk", None),
        ("chunk skipped", "settled"),
    ]
    assert check_sums(shop.ledger) == Counts(6, 6)


def test_who_waits_takes_over_when_the_other_dies_and_who_comes_late_changes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_BUSY_S", 60)
    whole = shop.chunk(30)
    held = Held()
    late = shop.worker(held, "late", budget_s=0.0)  # and so it would split
    first = started(late, whole)
    assert held.reached.wait(20)
    second = started(shop.worker(name="heir"), whole)
    second.join(0.5)
    assert second.is_alive()
    shop.kill("late")
    second.join(30)
    assert not second.is_alive()
    assert check_sums(shop.ledger) == Counts(30, 30)
    held.go.set()
    first.join(30)
    assert not first.is_alive()
    assert shop.published == []
    assert check_sums(shop.ledger) == all_embedded(whole)
    assert len(shop.points()) == 30


def test_nobody_waits_long_for_a_chunk_that_hangs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message goes back, and comes round until the chunk is settled or its worker dead."""
    monkeypatch.setattr(processor, "_BUSY_S", 0.1)
    whole, held = shop.chunk(6), Held()
    first = started(shop.worker(held, "hangs"), whole)
    assert held.reached.wait(20)
    others = shop.worker(name="other")
    for _ in range(3):
        with pytest.raises(ChunkReturnedError):
            others.handle(sent(whole))
        why = "another attempt has it in hand"
        assert shop.events[-1] == ("chunk returned", {"run": RUN, "chunk": whole.id, "why": why})
    shop.kill("hangs")
    others.handle(sent(whole))
    assert check_sums(shop.ledger) == Counts(6, 6)
    held.go.set()
    first.join(30)
    assert not first.is_alive()
    assert shop.published == []


def test_what_a_worker_has_in_hand(shop: Shop) -> None:
    """Until it is settled, split or given back: its lease has to be renewed that long, and no longer."""
    worker = shop.worker(Before(lambda: in_hand.append(list(worker.hands.tokens()))), budget_s=0.0)
    in_hand: list[list[str]] = []
    names = shop.fill(12)
    worker.handle(sent(chunk(*names[:3])))
    ((token,),) = in_hand
    assert token
    worker.handle(sent(chunk(*names)))
    assert len(shop.published) == 1, "it was split"
    shop.error = StoreUnavailableError("Qdrant is away")
    worker.handle(sent(shop.published[0]))
    shop.error = None
    worker.stopping.set()
    with pytest.raises(ChunkReturnedError):
        worker.handle(sent(shop.published[0]))
    assert worker.hands.tokens() == []
    assert not list(shop.ledger.redis.scan_iter(f"{LEASE_PREFIX}*"))
    # What a defect ends stays in hand until the worker has ended.
    broken_worker = shop.worker(Before(broken), "broken")
    with pytest.raises(ChunkReturnedError):
        broken_worker.handle(sent(shop.published[0]))
    assert len(broken_worker.hands) == 1


def test_a_chunk_moves_with_each_of_its_images(shop: Shop) -> None:
    moved: list[str] = []

    class Noticed(Hands):
        def moved(self, token: str) -> None:
            moved.append(token)
            super().moved(token)

    shop.worker(hands=Noticed()).handle(sent(shop.chunk(5)))
    assert len(moved) > 5
    assert len(set(moved)) == 1
