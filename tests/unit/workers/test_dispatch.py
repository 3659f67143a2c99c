"""The dispatcher with a real ledger and real queues; the workers are a few lines that take chunks out of the Redis list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
from service_fixtures import start_redis
from unit_support import SPACE_B
from worker_support import QUEUE, RUN, SOURCE, all_embedded, check_sums, chunk, letter, part, taken

from mcip_qdrant.errors import Reason, RunError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.workers import dispatch
from mcip_qdrant.workers.broker import broker_settings, make_celery
from mcip_qdrant.workers.dispatch import Dispatcher, DispatchStoppedError, Watch, open_run, resume_run
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.queue import Queues
from mcip_qdrant.workers.records import Counts

pytestmark = pytest.mark.timeout(60)

SAMPLE = chunk("-")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks more often than it would."""
    monkeypatch.setattr(dispatch, "_POLL_S", 0.02)


def refs(*names: str) -> list[ImageRef]:
    return [ImageRef(SOURCE, name) for name in names]


def numbered(count: int) -> list[ImageRef]:
    return refs(*(f"{number:04d}.png" for number in range(count)))


class Office:
    """A ledger with one run, its queue, and dispatchers for it."""

    def __init__(self, ledger: Ledger, queues: Queues) -> None:
        self.ledger, self.queues = ledger, queues
        open_run(ledger, SAMPLE, "Tiny-A", "/data/s")

    def dispatcher(self, watch: Watch | None = None, look_ahead: int = 64) -> Dispatcher:
        return Dispatcher(self.ledger, self.queues, RUN, SAMPLE, watch or Watch(), look_ahead)

    def waiting(self) -> list[Chunk]:
        """What is in the queue, which is empty afterwards."""
        found = []
        while (one := taken(self.ledger, QUEUE)) is not None:
            found.append(one)
        return found

    def work(self, of: Chunk, bad: Iterable[str] = (), reason: Reason = Reason.CORRUPT) -> None:
        """Settle a chunk, if it is still to be done."""
        if self.ledger.begin(of, "w", of.id).verdict != "go":
            return
        letters = [letter(name, reason) for name in of.images if name in set(bad)]
        self.ledger.settle(of, Counts(len(of.images), len(of.images) - len(letters), 0, len(letters)), letters)


@pytest.fixture
def office(ledger: Ledger, queues: Queues) -> Office:
    return Office(ledger, queues)


@pytest.fixture
def hand(office: Office) -> Iterator[Hand]:
    """A worker."""
    started = Hand(office)
    yield started
    started.stop()


class Hand:
    """A thread that takes chunks and settles them; it notes how many waited each time."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.done: list[Chunk] = []
        self.lengths: list[int] = []
        self.bad: set[str] = set()
        self._then: tuple[int, Callable[[], object]] = (0, lambda: None)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def after(self, count: int, action: Callable[[], object]) -> None:
        """Do something once so many chunks are done."""
        self._then = count, action

    def start(self, bad: Iterable[str] = ()) -> None:
        self.bad = set(bad)
        self._thread.start()

    def _work(self) -> None:
        while not self._left.wait(0.005):
            self.lengths.append(self.office.queues.length([QUEUE]))
            if (one := taken(self.office.ledger, QUEUE)) is not None:
                self.office.work(one, self.bad)
                self.done.append(one)
                if len(self.done) == self._then[0]:
                    self._then[1]()

    def stop(self) -> None:
        self._left.set()
        if self._thread.is_alive():
            self._thread.join()


# Feeding.


def test_a_listing_becomes_chunks(office: Office) -> None:
    columns = {"0001.png": {"tag": "ä"}, "0006.png": {}}

    def of_image(ref: ImageRef) -> Mapping[str, Any]:
        return columns.get(ref.relative, {})

    office.dispatcher().feed(numbered(10), 4, of_image)
    assert office.ledger.info(RUN).state == "dispatched"
    assert check_sums(office.ledger) == Counts(10)
    found = office.waiting()
    assert [len(one.images) for one in found] == [4, 4, 2]
    assert [name for one in found for name in one.images] == [ref.relative for ref in numbered(10)]
    assert [one.columns for one in found] == [{"0001.png": {"tag": "ä"}}, {}, {}]
    assert all(replace(one, images=SAMPLE.images, columns={}) == SAMPLE for one in found)


def test_an_empty_listing(office: Office) -> None:
    dispatcher = office.dispatcher()
    dispatcher.feed([], 4)
    assert office.waiting() == []
    assert dispatcher.wait() == Counts()
    assert office.ledger.info(RUN).state == "dispatched"


@pytest.mark.parametrize("look_ahead", [1, 3, 7])
def test_the_queue_is_never_longer_than_the_look_ahead(office: Office, hand: Hand, look_ahead: int) -> None:
    listed, early = [0], []

    def listing() -> Iterator[ImageRef]:
        for ref in numbered(120):
            listed[0] += 1
            early.append(listed[0] - 3 * len(hand.done))
            yield ref

    lengths = []
    dispatcher = office.dispatcher(Watch(lambda _counts: lengths.append(office.queues.length([QUEUE]))), look_ahead)
    hand.start()
    dispatcher.feed(listing(), 3)
    assert dispatcher.wait() == Counts(120, 120)
    hand.stop()
    assert len(hand.done) == 40
    assert max([*hand.lengths, *lengths]) <= look_ahead
    # The listing is read no further than that either: what waits, one chunk in the worker's hand, one in the dispatcher's.
    assert max(early) <= 3 * (look_ahead + 3)


def test_the_queue_fills_up_and_stays_so_while_nobody_works(office: Office) -> None:
    stop = threading.Event()
    dispatcher = office.dispatcher(Watch(should_stop=stop.is_set), look_ahead=5)

    def feed() -> None:
        with pytest.raises(DispatchStoppedError):
            dispatcher.feed(numbered(100), 2)

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        for round_ in (1, 2):
            # What waits, and the one that it holds in its hand.
            expected, deadline = 2 * (5 * round_ + 1), time.monotonic() + 20
            while office.ledger.counts(RUN).submitted < expected and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
            assert feeding.is_alive()
            assert office.ledger.counts(RUN).submitted == expected
            assert office.queues.length([QUEUE]) == 5
            # Taking them off by one command: the dispatcher fills up again as soon as there is room.
            office.ledger.redis.ltrim(QUEUE, 5, -1)
    finally:
        stop.set()
        feeding.join(10)
    assert not feeding.is_alive()
    assert office.ledger.info(RUN).state == "dispatching"


def test_another_runs_chunks_count_as_waiting(office: Office) -> None:
    """Two dispatchers share the room in one queue."""
    for number in range(4):
        office.queues.publish(chunk(f"{number}.png", run="other"))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(DispatchStoppedError):
        office.dispatcher(Watch(should_stop=stop.is_set), look_ahead=4).feed(numbered(2), 1)
    assert office.queues.length([QUEUE]) == 4


def test_waiting_shows_counts_until_all_is_settled(office: Office, hand: Hand) -> None:
    shown: list[Counts] = []
    dispatcher = office.dispatcher(Watch(shown.append))
    dispatcher.feed(numbered(20), 2)
    hand.start(bad=["0003.png"])
    assert dispatcher.wait() == Counts(20, 19, 0, 1) == shown[-1]
    assert all(one.submitted == 20 for one in shown[1:])
    assert [one.settled for one in shown] == sorted(one.settled for one in shown)


# Going on with a run.


def test_what_is_settled_is_not_sent_again(office: Office) -> None:
    office.dispatcher().feed(numbered(12), 3)
    first, *others = office.waiting()  # lost, say
    office.work(first)
    office.dispatcher().feed(numbered(12), 3)
    assert sorted(office.waiting(), key=lambda one: one.images) == others
    assert check_sums(office.ledger) == Counts(12, 3)
    for one in others:
        office.work(one)
    office.dispatcher().feed(numbered(12), 3)
    assert office.waiting() == []
    assert check_sums(office.ledger) == Counts(12, 12)


def test_promised_chunks_are_sent_again(office: Office) -> None:
    """A worker split its chunk and died before it published the rest."""
    office.dispatcher().feed(numbered(6), 3)
    first, second = office.waiting()
    office.ledger.begin(first, "w", "1")
    rest = replace(first.of(first.images[1:]), suspect=True)
    assert office.ledger.split(first, first.of(first.images[:1]), Counts(1, 1), [], rest)
    office.dispatcher().feed(numbered(6), 3)
    assert sorted(office.waiting(), key=lambda one: one.images) == [rest, second]
    assert check_sums(office.ledger) == Counts(6, 1)


def test_lost_chunks_are_sent_again(office: Office, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken off the queue by a worker that died before kombu noted it: nobody will ever give them back."""
    monkeypatch.setattr(dispatch, "_GRACE_S", 0.3 - office.ledger.settings.visibility_timeout_s)
    again: list[int] = []
    dispatcher = office.dispatcher(Watch(on_sent_again=again.append))
    dispatcher.feed(numbered(12), 3)
    lost = [taken(office.ledger, QUEUE), taken(office.ledger, QUEUE)]
    hand.start()
    assert dispatcher.wait() == Counts(12, 12)
    assert again == [2]
    assert sorted(one.id for one in hand.done[-2:]) == sorted(one.id for one in lost if one)
    assert check_sums(office.ledger) == Counts(12, 12)
    assert part(office.ledger, "outbox") == {}


@pytest.mark.parametrize("where", ["in a living worker's hands", "in the queue"])
def test_what_is_not_lost_is_not_sent_again(office: Office, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(dispatch, "_GRACE_S", 0.1 - office.ledger.settings.visibility_timeout_s)
    again: list[int] = []
    end = time.monotonic() + 1
    dispatcher = office.dispatcher(Watch(should_stop=lambda: time.monotonic() > end, on_sent_again=again.append))
    dispatcher.feed(numbered(6), 3)
    if where != "in the queue":
        office.ledger.beat("w", {})
        for one in office.waiting():
            office.ledger.begin(one, "w", one.id)
    with pytest.raises(DispatchStoppedError):
        dispatcher.wait()
    assert again == []


def test_a_stopped_dispatcher_goes_on(office: Office, hand: Hand) -> None:
    full = Watch(should_stop=lambda: office.queues.length([QUEUE]) == 3)
    with pytest.raises(DispatchStoppedError):
        office.dispatcher(full, look_ahead=3).feed(numbered(40), 2)
    assert office.ledger.counts(RUN).submitted == 8, "the one that it could not send any more is entered, too"
    hand.start()
    dispatcher = office.dispatcher()
    dispatcher.feed(numbered(40), 2)
    assert dispatcher.wait() == Counts(40, 40)
    assert check_sums(office.ledger) == Counts(40, 40)


def test_a_run_goes_on_with_what_it_began_with(office: Office) -> None:
    wanted = replace(SAMPLE, ingested_at="2026-02-02T00:00:00Z", max_bytes=1, images=("x",))
    assert resume_run(office.ledger, RUN, wanted) == (SAMPLE, 256)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"collection": "other"}, "its collection is 'images', not 'other'"),
        ({"space_id": SPACE_B}, f"its space_id is '{SAMPLE.space_id}', not '{SPACE_B}'"),
        ({"source": "t"}, "its source is 's', not 't'"),
        ({"decode": "scaled"}, "its decode is 'exact', not 'scaled'"),
        ({"checksum": True}, "its checksum is False, not True"),
    ],
)
def test_a_run_about_something_else_is_refused(office: Office, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RunError, match=f"--resume {RUN}: {complaint}; start a new run instead"):
        resume_run(office.ledger, RUN, replace(SAMPLE, **change))


def test_an_unknown_run_is_refused(office: Office) -> None:
    with pytest.raises(RunError, match="no run 'nobody'"):
        resume_run(office.ledger, "nobody", SAMPLE)


@pytest.mark.parametrize("when", ["while it dispatches", "while it waits"])
def test_redis_loses_what_was_dispatched(tmp_path: Path, when: str) -> None:
    """Its last second, as with a power cut: chunks and messages alike, so that all it knows of may be settled."""
    with start_redis(tmp_path / "redis") as server:
        settings = broker_settings(server.url)
        app, ledger = make_celery(settings), Ledger(settings)
        office = Office(ledger, Queues(app, settings, ledger.redis))

        def listing(*, losing: bool) -> Iterator[ImageRef]:
            for number, ref in enumerate(numbered(20)):
                if losing and number == 8:
                    server.copy(tmp_path / "copy")
                if losing and number == 14 and when == "while it dispatches":
                    server.go_back(tmp_path / "copy")
                yield ref

        def feed(*, losing: bool) -> None:
            dispatcher = office.dispatcher()
            dispatcher.feed(listing(losing=losing), 1)
            if losing:
                server.go_back(tmp_path / "copy")
            for one in office.waiting():
                office.work(one)
            dispatcher.wait()

        with pytest.raises(RunError, match=rf"of the 20 images .* it lost the rest\. Go on: --resume {RUN}"):
            feed(losing=True)
        assert ledger.info(RUN).state == "dispatching", "nobody may take it for complete"
        feed(losing=False)
        assert ledger.info(RUN).state == "dispatched"
        assert check_sums(ledger) == Counts(20, 20)
        ledger.redis.flushall()
        with pytest.raises(RunError, match=f"Redis does not know run {RUN} any more"):
            office.dispatcher().wait()
        ledger.redis.close()
        app.close()
        kombu.pools.reset()


# Cancelling.


def test_a_cancelled_run_is_fed_no_further(office: Office, hand: Hand) -> None:
    listed = [0]

    def listing() -> Iterator[ImageRef]:
        for ref in numbered(200):
            listed[0] += 1
            yield ref

    hand.after(10, lambda: office.ledger.set_state(RUN, "cancelled"))
    hand.start()
    with pytest.raises(DispatchStoppedError, match=f"run {RUN} was cancelled; --resume {RUN} goes on with it"):
        office.dispatcher(look_ahead=2).feed(listing(), 1)
    assert 10 <= listed[0] < 200
    assert office.ledger.info(RUN).state == "cancelled"
    assert len(hand.done) < 200


def test_a_cancelled_run_is_not_waited_for(office: Office) -> None:
    dispatcher = office.dispatcher()
    dispatcher.feed(numbered(4), 2)
    threading.Timer(0.2, office.ledger.set_state, (RUN, "cancelled")).start()
    with pytest.raises(DispatchStoppedError, match="was cancelled"):
        dispatcher.wait()
    for one in office.waiting():
        assert office.ledger.begin(one, "w", "1").verdict == "cancelled"
    # And taken up again.
    dispatcher = office.dispatcher()
    dispatcher.feed(numbered(4), 2)
    for one in office.waiting():
        office.work(one)
    assert dispatcher.wait() == Counts(4, 4)


def test_cancelling_while_the_last_chunks_are_fed(office: Office) -> None:
    def listing() -> Iterator[ImageRef]:
        yield from numbered(3)
        office.ledger.set_state(RUN, "cancelled")

    office.dispatcher().feed(listing(), 1)
    assert office.ledger.info(RUN).state == "cancelled"


def test_somebody_who_does_not_want_to_wait_any_longer(office: Office) -> None:
    stop = threading.Event()
    dispatcher = office.dispatcher(Watch(should_stop=stop.is_set))
    dispatcher.feed(numbered(2), 1)
    stop.set()
    with pytest.raises(DispatchStoppedError):
        dispatcher.wait()
    assert office.ledger.info(RUN).state == "dispatched"


# Replaying dead letters.


def some_failed(office: Office) -> dict[str, Reason]:
    """Twelve images, of which five failed."""
    columns = {"0003.png": {"tag": "ä"}, "0004.png": {"tag": "fine"}}
    office.dispatcher().feed(numbered(12), 6, lambda ref: columns.get(ref.relative, {}))
    reasons = {
        "0001.png": Reason.CRASHED_DECODER,
        "0003.png": Reason.CORRUPT,
        "0007.png": Reason.QDRANT_UNAVAILABLE,
        "0008.png": Reason.CRASHED_WORKER,
        "0011.png": Reason.GONE,
    }
    for one in office.waiting():
        letters = [letter(name, reasons[name]) for name in one.images if name in reasons]
        office.ledger.begin(one, "w", one.id)
        office.ledger.settle(one, Counts(6, 6 - len(letters), 0, len(letters)), letters)
    assert check_sums(office.ledger) == Counts(12, 7, 0, 5)
    return reasons


def test_a_replay_sends_the_dead_letters_and_nothing_else(office: Office) -> None:
    reasons = some_failed(office)
    dispatcher = office.dispatcher()
    assert dispatcher.replay(2) == 5
    found = office.waiting()
    assert sorted(name for one in found for name in one.images) == sorted(reasons)
    assert max(len(one.images) for one in found) == 2
    crashed = {"0001.png", "0008.png"}
    assert {name for one in found if one.suspect for name in one.images} == crashed
    assert all(one.suspect == (set(one.images) <= crashed) for one in found), "no suspect among the others"
    assert {one.generation for one in found} == {1}
    assert [one.columns for one in found if one.columns] == [{"0003.png": {"tag": "ä"}}]
    assert check_sums(office.ledger) == Counts(12, 7)
    for one in found:
        office.work(one, bad=["0011.png"], reason=Reason.GONE)
    assert dispatcher.wait() == Counts(12, 11, 0, 1)
    assert office.dispatcher().replay(100) == 1
    (last,) = office.waiting()
    assert (last.images, last.generation, last.suspect) == (("0011.png",), 2, False)


def test_nothing_to_replay(office: Office) -> None:
    office.dispatcher().feed(numbered(2), 1)
    for one in office.waiting():
        office.work(one)
    assert office.dispatcher().replay(10) == 0
    assert office.waiting() == []
    assert office.ledger.info(RUN).replays == 0


def test_a_replay_that_was_cut_short_is_completed(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had entered its first chunk, and died before it was published."""
    reasons = some_failed(office)

    def die(_chunk: Chunk) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(office.queues, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            office.dispatcher().replay(2)
    assert office.waiting() == []
    assert check_sums(office.ledger) == Counts(12, 7, 0, 3)
    assert office.dispatcher().replay(2) == 5
    found = office.waiting()
    assert sorted(name for one in found for name in one.images) == sorted(reasons)
    assert {one.generation for one in found} == {1, 2}
    for one in found:
        office.work(one)
    assert check_sums(office.ledger) == Counts(12, 12)
    assert part(office.ledger, "outbox") == {}


def test_a_replay_keeps_to_the_look_ahead(office: Office, hand: Hand) -> None:
    office.dispatcher().feed(numbered(30), 30)
    (one,) = office.waiting()
    office.work(one, bad=one.images)
    hand.start()
    dispatcher = office.dispatcher(look_ahead=3)
    assert dispatcher.replay(1) == 30
    assert dispatcher.wait() == Counts(30, 30)
    assert max(hand.lengths) <= 3


def test_a_new_run_is_entered_as_it_is(ledger: Ledger) -> None:
    open_run(ledger, chunk("a", "b", columns={"a": {"n": 1}}), "Tiny-A", "/data/größe")
    info = ledger.info(RUN)
    assert (info.model, info.root, info.state) == ("Tiny-A", "/data/größe", "dispatching")
    assert Chunk.from_message(info.sample) == SAMPLE
    assert ledger.runs() == [RUN]
    assert ledger.counts(RUN) == Counts()


def test_counts_of_a_complete_run_are_there_at_once(office: Office) -> None:
    office.dispatcher().feed(numbered(4), 4)
    (one,) = office.waiting()
    office.ledger.begin(one, "w", "1")
    office.ledger.settle(one, all_embedded(one), [])
    started = time.monotonic()
    assert office.dispatcher().wait() == Counts(4, 4)
    assert time.monotonic() - started < 5
