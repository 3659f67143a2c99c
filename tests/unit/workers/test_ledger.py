"""The ledger on a real Redis: leave to work, entries that are set and never added to, and sums that hold whatever happens."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from worker_support import RUN, SOURCE, all_embedded, check_sums, chunk, counted_again, letter, living, part

from mcip_qdrant.errors import Reason, RunError
from mcip_qdrant.report import DeadLetter
from mcip_qdrant.workers.broker import BrokerSettings
from mcip_qdrant.workers.ledger import LEASE_PREFIX, PREFIX, WORKER_PREFIX, Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.records import Counts, Dispatched, FailedImage, RunInfo, Ticket, sample_of

DAY = 24 * 3600
GO = Ticket("go")


def about(run: str = RUN, *, days_ago: float = 0, **changes: Any) -> RunInfo:
    fields: dict[str, Any] = {"model": "Tiny-A", "root": "/data/s", "state": "dispatching", **changes}
    sample = json.loads(json.dumps(chunk("-", run=run).to_message()))
    return RunInfo(run=run, started_at=time.time() - days_ago * DAY, sample=sample, chunk_size=256, **fields)


def letters_of(ledger: Ledger) -> dict[str, DeadLetter]:
    return {item.letter.key: item.letter for item in ledger.failures(RUN)}


# Runs.


def test_what_a_run_is_about(ledger: Ledger) -> None:
    before = about(root="/data/größe %41")
    ledger.open_run(before)
    assert ledger.info(RUN) == before
    assert sample_of(ledger.info(RUN)) == chunk("-")
    assert ledger.counts(RUN) == Counts()
    ledger.all_dispatched(RUN)
    assert ledger.info(RUN).state == "dispatched"
    ledger.set_state(RUN, "cancelled")
    ledger.all_dispatched(RUN)
    assert ledger.info(RUN).state == "cancelled", "the dispatcher came too late"
    ledger.all_dispatched("nobody")
    assert ledger.runs() == [RUN]
    with pytest.raises(RunError):
        ledger.info("nobody")
    ledger.dispatch(chunk())
    assert ledger.info(RUN).last_at == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("run", ["nobody", "", "a:b", "ä"])
def test_an_unknown_run(ledger: Ledger, broker: BrokerSettings, run: str) -> None:
    with pytest.raises(RunError, match=f"no run .*{run}.*at {broker.shown}; list them with: mcip-qdrant status"):
        ledger.info(run)
    assert ledger.counts(run) == Counts()
    assert list(ledger.failures(run)) == list(ledger.promised(run)) == []


def test_a_run_of_another_version(ledger: Ledger) -> None:
    ledger.open_run(replace(about(), sample={"format": 2}))
    with pytest.raises(RunError, match=f"run {RUN} was started by another version"):
        sample_of(ledger.info(RUN))


def test_runs_newest_first_and_none_older_than_thirty_days(ledger: Ledger) -> None:
    for run, days_ago in (("old", 30.01), ("older", 400), ("last", 29.9), ("new", 0), ("middle", 3)):
        ledger.open_run(about(run, days_ago=days_ago))
    assert ledger.runs() == ["new", "middle", "last"]
    assert ledger.runs(limit=2) == ["new", "middle"]
    assert ledger.redis.zcard(f"{PREFIX}runs") == 3


def test_what_a_run_leaves_goes_after_thirty_days(ledger: Ledger) -> None:
    ledger.open_run(about())
    whole, other = chunk("a", "b", "c"), chunk("d")
    ledger.begin(whole, "w", "1")
    ledger.split(whole, whole.of(["a"]), Counts(1, failed=1), [letter("a")], whole.of(["b", "c"]))
    ledger.begin(other, "w", "2")
    ledger.leave("w")
    ledger.begin(other, "v", "3")
    names = {str(name).rpartition(":")[2] for name in ledger.redis.scan_iter(f"{PREFIX}run:*")}
    assert names == {"chunks", "totals", "info", "failures", "working", "crashes", "outbox"}
    for name in ledger.redis.scan_iter(f"{PREFIX}run:*"):
        assert 29.9 * DAY < ledger.redis.ttl(name) <= 30 * DAY, name


def test_runs_do_not_see_each_other(ledger: Ledger) -> None:
    one, other = chunk(), chunk(run="run-2")
    for each in (one, other):
        ledger.dispatch(each)
        ledger.begin(each, "w", each.run)
    ledger.settle(one, Counts(3, embedded=2, failed=1), [letter("a.png")])
    assert check_sums(ledger) == Counts(3, 2, 0, 1)
    assert check_sums(ledger, "run-2") == Counts(3)


# Workers and refused messages.


def test_heartbeats(ledger: Ledger) -> None:
    hurried = Ledger(replace(ledger.settings, visibility_timeout_s=0.2))
    ledger.beat("one", {"model": "A", "sources": ["ä"]})
    hurried.beat("two", {"model": "B"})
    time.sleep(0.1)
    hurried.redis.close()
    assert ledger.workers() == {"one": {"model": "A", "sources": ["ä"]}}
    ledger.leave("one")
    ledger.leave("one")
    assert ledger.workers() == {}


def test_refused_messages_are_kept_newest_first(ledger: Ledger) -> None:
    ledger.refuse({"format": 9}, "another format")
    ledger.refuse(b"\x80\x04pickle", "not a chunk")
    newest, oldest = ledger.refused()
    assert (newest["why"], oldest["why"], oldest["message"]) == ("not a chunk", "another format", {"format": 9})
    assert newest["at"] == pytest.approx(time.time(), abs=60)


def test_refused_messages_do_not_fill_redis(ledger: Ledger) -> None:
    ledger.redis.zadd(
        f"{PREFIX}refusals", {json.dumps({"why": str(number), "message": {}}): number for number in range(1500)}
    )
    for _ in range(3):
        ledger.refuse({"run": RUN}, "the last")  # sent again and again
    assert ledger.why_refused(RUN) == "the last"
    assert ledger.why_refused("other") is None
    assert len(ledger.refused()) == 1000
    assert [item["why"] for item in ledger.refused()[:2]] == ["the last", "1499"]


# Leave to work.


def test_dispatching(ledger: Ledger) -> None:
    assert ledger.dispatch(chunk()) == Dispatched(is_new=True, to_publish=True)
    assert ledger.dispatch(chunk()) == Dispatched(is_new=False, to_publish=True), "it is still to be done"
    assert check_sums(ledger) == Counts(3)
    ledger.begin(chunk(), "w", "1")
    assert ledger.dispatch(chunk()).to_publish
    ledger.settle(chunk(), all_embedded(chunk()), [])
    assert ledger.dispatch(chunk()) == Dispatched(is_new=False, to_publish=False)
    assert check_sums(ledger) == Counts(3, 3)


def test_a_chunk_that_nobody_entered_is_entered_when_it_begins(ledger: Ledger) -> None:
    assert ledger.begin(chunk(), "w", "1") == GO
    assert check_sums(ledger) == Counts(3)


def test_busy_while_the_holder_lives_and_a_crash_once_it_does_not(ledger: Ledger) -> None:
    ledger.beat("one", {})
    ledger.redis.pexpire(f"{WORKER_PREFIX}one", 1000)
    assert ledger.begin(chunk(), "one", "1") == GO
    assert ledger.begin(chunk(), "two", "2") == Ticket("busy")
    assert ledger.begin(chunk(), "one", "9") == Ticket("busy"), "another thread of the same worker"
    deadline = time.monotonic() + 10
    while (ticket := ledger.begin(chunk(), "two", "2")).verdict == "busy" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ticket == Ticket("go", crashes=1)
    # It has a new holder, whose death is the second.
    living(ledger, "two")
    assert ledger.begin(chunk(), "three", "3") == Ticket("busy")
    ledger.leave("two")
    assert ledger.begin(chunk(), "three", "3") == Ticket("go", crashes=2)
    ledger.settle(chunk(), all_embedded(chunk()), [])
    assert ledger.begin(chunk(), "four", "4") == Ticket("settled")
    assert part(ledger, "crashes") == part(ledger, "working") == {}


def test_what_a_living_worker_has_let_go_of_is_free_and_no_crash(ledger: Ledger) -> None:
    """It had settled the chunk, and Redis lost that with its last second: the entry names it, and it knows of nothing."""
    living(ledger, "one")
    assert ledger.begin(chunk(), "one", "1") == GO
    ledger.dispatch(chunk())
    ledger.redis.pexpire(f"{LEASE_PREFIX}1", 0)
    assert ledger.unheld(RUN) == [chunk()]
    assert ledger.begin(chunk(), "two", "2") == GO
    # And what it does have in hand stays so: each heartbeat renews it.
    living(ledger, "two")
    ledger.redis.pexpire(f"{LEASE_PREFIX}2", 500)
    ledger.beat("two", {}, ["2"])
    time.sleep(0.6)
    assert ledger.begin(chunk(), "one", "3") == Ticket("busy")
    assert ledger.unheld(RUN) == []
    # The token of a dead worker outlives its heartbeat, so that a crash is known as one.
    assert 0 < ledger.redis.pttl(f"{WORKER_PREFIX}two") < ledger.redis.pttl(f"{LEASE_PREFIX}2")


def test_a_repeated_token_is_the_same_attempt(ledger: Ledger) -> None:
    """A reply that was lost with the connection: redis-py asks again."""
    for alive in (False, True):
        if alive:
            living(ledger, "w")
        assert ledger.begin(chunk(), "w", "1") == GO
        assert ledger.begin(chunk(), "w", "1") == GO
    assert ledger.begin(chunk(), "w", "2") == Ticket("busy")
    ledger.leave("w")
    assert ledger.begin(chunk(), "w", "2") == Ticket("go", crashes=1), "the same name, another attempt"


def test_giving_back_is_no_crash(ledger: Ledger) -> None:
    ledger.begin(chunk(), "one", "1")
    ledger.give_back(chunk(), "one", "1")
    ledger.give_back(chunk(), "one", "1")
    assert ledger.begin(chunk(), "two", "2") == GO
    assert check_sums(ledger) == Counts(3)


def test_risk_is_counted_over_crashes(ledger: Ledger) -> None:
    for attempt in range(4):
        assert ledger.begin(chunk(), f"w{attempt}", "t") == Ticket("go", crashes=attempt, risky=attempt)
        ledger.note_risk(chunk())


def test_an_attempt_that_comes_back_alive_was_no_risk(ledger: Ledger) -> None:
    ledger.begin(chunk(), "one", "1")
    ledger.begin(chunk(), "two", "2")
    ledger.note_risk(chunk())
    ledger.give_back(chunk(), "two", "2")
    assert ledger.begin(chunk(), "three", "3") == Ticket("go", crashes=1, risky=0)


def test_who_was_thought_dead_gives_back_nothing(ledger: Ledger) -> None:
    """A worker that was stopped for a while, say: the chunk is in another's hands by now."""
    ledger.begin(chunk(), "one", "1")
    living(ledger, "two")
    ledger.begin(chunk(), "two", "2")
    ledger.note_risk(chunk())
    for owner, token in (("one", "1"), ("two", "another attempt")):
        ledger.give_back(chunk(), owner, token)
    assert ledger.begin(chunk(), "three", "3") == Ticket("busy")
    ledger.leave("two")
    assert ledger.begin(chunk(), "three", "3") == Ticket("go", crashes=2, risky=1)


def test_cancelled(ledger: Ledger) -> None:
    ledger.open_run(about())
    settled, waiting = chunk("a"), chunk("b")
    for each in (settled, waiting):
        ledger.dispatch(each)
    ledger.begin(settled, "w", "1")
    ledger.set_state(RUN, "cancelled")
    ledger.settle(settled, all_embedded(settled), [])  # what was in hand is finished
    assert ledger.begin(waiting, "w", "2") == Ticket("cancelled")
    assert ledger.begin(settled, "w", "3") == Ticket("settled")
    assert ledger.dispatch(waiting).to_publish, "to be done, should the run go on"
    ledger.set_state(RUN, "dispatching")
    assert ledger.begin(waiting, "w", "2") == GO
    assert check_sums(ledger) == Counts(2, 1)


# Entries.


def test_settling_takes_a_chunk_out_of_every_hand(ledger: Ledger) -> None:
    ledger.begin(chunk(), "one", "1")
    ledger.begin(chunk(), "two", "2")
    ledger.note_risk(chunk())
    ledger.settle(chunk(), Counts(3, 1, 1, 1), [letter("b.png", Reason.GONE, 'no "ä" \n\0 \\ 🌊')])
    assert check_sums(ledger) == Counts(3, 1, 1, 1)
    assert letters_of(ledger) == {"s/b.png": letter("b.png", Reason.GONE, 'no "ä" \n\0 \\ 🌊')}
    assert not any(part(ledger, name) for name in ("working", "crashes", "risky", "outbox"))


def test_settling_twice_counts_once(ledger: Ledger) -> None:
    ledger.begin(chunk(), "one", "1")
    for _ in range(2):
        ledger.settle(chunk(), Counts(3, 2, 0, 1), [letter("a.png")])
    assert check_sums(ledger) == Counts(3, 2, 0, 1)


def test_who_settles_first_has_settled(ledger: Ledger) -> None:
    """A worker that was thought dead comes late; the dead letters may have been replayed meanwhile."""
    ledger.begin(chunk(), "late", "1")
    ledger.begin(chunk(), "quick", "2")
    ledger.settle(chunk(), Counts(3, 2, 0, 1), [letter("a.png")])
    again = chunk("a.png", generation=1)
    assert ledger.replay(again)
    ledger.settle(chunk(), Counts(3, 2, 0, 1), [letter("a.png")])
    assert check_sums(ledger) == Counts(3, 2)
    ledger.begin(again, "quick", "3")
    ledger.settle(again, all_embedded(again), [])
    assert check_sums(ledger) == Counts(3, 3)


def test_a_split_chunk_is_replaced_by_its_parts(ledger: Ledger) -> None:
    columns = {"a": {"n": 1}, "c": {"n": 3}}
    whole = chunk("a", "b", "c", "d", columns=columns, postponed=2)
    done, rest = whole.of(["a", "b"]), replace(whole.of(["c", "d"]), suspect=True)
    ledger.dispatch(whole)
    ledger.begin(whole, "w", "1")
    assert ledger.split(whole, done, Counts(2, 1, 0, 1), [letter("a")], rest)
    assert check_sums(ledger) == Counts(4, 1, 0, 1)
    assert list(ledger.failures(RUN)) == [FailedImage(letter("a"), {"n": 1})]
    assert list(ledger.promised(RUN)) == [rest]
    # Delivered again, the whole gives the promised rest; so often as it is asked, as long as the rest is not done.
    for token in "23":
        assert ledger.begin(whole, "v", token) == Ticket("split", rest=rest)
    assert not ledger.dispatch(whole).to_publish
    assert ledger.begin(done, "v", "4") == Ticket("settled")
    assert ledger.begin(rest, "v", "5") == GO
    assert ledger.begin(whole, "v", "6") == Ticket("split", rest=rest)
    ledger.settle(rest, all_embedded(rest), [])
    assert ledger.begin(whole, "v", "7") == Ticket("split")
    assert list(ledger.promised(RUN)) == []
    assert check_sums(ledger) == Counts(4, 3, 0, 1)


def test_a_rest_may_be_split_again(ledger: Ledger) -> None:
    left = chunk("a", "b", "c", "d")
    while len(left.images) > 1:
        ledger.begin(left, "w", left.id)
        rest = left.of(left.images[1:])
        assert ledger.split(left, left.of(left.images[:1]), Counts(1, unchanged=1), [], rest)
        assert list(ledger.promised(RUN)) == [rest]
        left = rest
    ledger.begin(left, "w", left.id)
    ledger.settle(left, all_embedded(left), [])
    assert check_sums(ledger) == Counts(4, 1, 3, 0)
    assert ledger.begin(chunk("a", "b", "c", "d"), "w", "0") == Ticket("split")


def test_splitting_twice_is_splitting_once(ledger: Ledger) -> None:
    """The reply of the first was lost."""
    whole = chunk("a", "b", "c")
    ledger.begin(whole, "w", "1")
    for _ in range(2):
        assert ledger.split(whole, whole.of(["a"]), Counts(1, 1), [], whole.of(["b", "c"]))
    assert check_sums(ledger) == Counts(3, 1)
    assert list(ledger.promised(RUN)) == [whole.of(["b", "c"])]


@pytest.mark.parametrize("other", ["settled", "split"])
def test_who_comes_late_has_no_rest_to_hand_on(ledger: Ledger, other: str) -> None:
    """Its rest is not in the ledger, and published it would be counted a second time."""
    whole = chunk("a", "b", "c")
    ledger.begin(whole, "late", "1")
    ledger.begin(whole, "quick", "2")
    if other == "settled":
        ledger.settle(whole, all_embedded(whole), [])
    else:
        assert ledger.split(whole, whole.of(["a", "b"]), Counts(2, 2), [], whole.of(["c"]))
    before = check_sums(ledger)
    assert not ledger.split(whole, whole.of(["a"]), Counts(1, failed=1), [letter("a")], whole.of(["b", "c"]))
    ledger.settle(whole, Counts(3, failed=3), [letter(name) for name in "abc"])
    assert check_sums(ledger) == before
    assert before.failed == 0


# Replays.


def failed_chunk(ledger: Ledger) -> Chunk:
    """Three images, of which two failed."""
    columns = {"a": {"tag": "ä", "n": [1, None, {"x": 1.5}]}, "b": {"tag": "b"}}
    first = chunk("a", "b", "c", columns=columns)
    ledger.begin(first, "w", "1")
    ledger.settle(first, Counts(3, 1, 0, 2), [letter("a"), letter("c", Reason.CRASHED_DECODER)])
    return first


def test_columns_come_along_with_dead_letters(ledger: Ledger) -> None:
    first = failed_chunk(ledger)
    found = {item.letter.key: item.columns for item in ledger.failures(RUN)}
    assert found == {"s/a": first.columns["a"], "s/c": {}}


def test_a_replay_moves_the_failed_to_a_chunk_of_their_own(ledger: Ledger) -> None:
    first = failed_chunk(ledger)
    generation = ledger.next_generation(RUN)
    again = chunk("a", "c", columns={"a": first.columns["a"]}, generation=generation, suspect=True)
    assert ledger.replay(again)
    assert check_sums(ledger) == Counts(3, 1)
    assert letters_of(ledger) == {}
    assert list(ledger.promised(RUN)) == [again]
    assert ledger.begin(first, "w", "2") == Ticket("settled")
    assert ledger.begin(again, "w", "3") == GO
    ledger.settle(again, Counts(2, 1, 0, 1), [letter("a", Reason.GONE)])
    assert check_sums(ledger) == Counts(3, 2, 0, 1)
    # And once more.
    last = chunk("a", generation=ledger.next_generation(RUN))
    assert ledger.replay(last)
    ledger.begin(last, "w", "4")
    ledger.settle(last, all_embedded(last), [])
    assert check_sums(ledger) == Counts(3, 3)


def test_generations_are_never_given_twice(ledger: Ledger) -> None:
    ledger.open_run(about())
    assert [ledger.next_generation(RUN) for _ in range(3)] == [1, 2, 3]
    assert ledger.info(RUN).replays == 3


@pytest.mark.parametrize("images", [("b",), ("a", "b"), ("b", "a"), ("nobody",)])
def test_what_is_no_dead_letter_is_not_replayed(ledger: Ledger, images: tuple[str, ...]) -> None:
    failed_chunk(ledger)
    before = ledger.redis.hgetall(f"{PREFIX}run:{RUN}:failures")
    assert not ledger.replay(chunk(*images, generation=1))
    assert check_sums(ledger) == Counts(3, 1, 0, 2)
    assert ledger.redis.hgetall(f"{PREFIX}run:{RUN}:failures") == before
    assert list(ledger.promised(RUN)) == []


def test_two_replays_of_one_letter(ledger: Ledger) -> None:
    failed_chunk(ledger)
    assert ledger.replay(chunk("a", generation=1))
    assert not ledger.replay(chunk("a", "c", generation=2))
    assert ledger.replay(chunk("c", generation=2))
    assert check_sums(ledger) == Counts(3, 1)


def test_a_replay_repeated(ledger: Ledger) -> None:
    """The reply of the first was lost: it must be published all the same. Once it is done, it must not."""
    failed_chunk(ledger)
    again = chunk("a", "c", generation=1)
    assert [ledger.replay(again) for _ in range(3)] == [True] * 3
    assert check_sums(ledger) == Counts(3, 1)
    ledger.begin(again, "w", "2")
    ledger.settle(again, Counts(2, failed=2), [letter("a"), letter("c")])
    assert not ledger.replay(again)
    assert check_sums(ledger) == Counts(3, 1, 0, 2)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ROWS = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT | st.lists(TEXT, max_size=2), max_size=3)


@given(st.lists(TEXT, min_size=1, max_size=5, unique=True), TEXT, ROWS, st.sampled_from(Reason))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_messages_and_columns_survive(
    ledger: Ledger, names: list[str], message: str, row: dict[str, Any], reason: Reason
) -> None:
    ledger.redis.flushall()
    first = chunk(*names, columns={names[0]: row})
    ledger.begin(first, "w", "1")
    ledger.settle(first, Counts(len(names), failed=len(names)), [letter(name, reason, message) for name in names])
    found = {item.letter.key: item for item in ledger.failures(RUN)}
    assert set(found) == {f"{SOURCE}/{name}" for name in names}
    assert {(item.letter.reason, item.letter.message) for item in found.values()} == {(reason, message)}
    assert found[f"{SOURCE}/{names[0]}"].columns == row
    again = chunk(*names, columns={names[0]: row}, generation=1)
    assert ledger.replay(again)
    assert list(ledger.promised(RUN)) == [again]
    assert check_sums(ledger) == Counts(len(names))
    ledger.settle(again, all_embedded(again), [])
    assert check_sums(ledger) == all_embedded(again)


def test_the_largest_chunk(ledger: Ledger) -> None:
    whole = chunk(*(f"{number:06d}.png" for number in range(4096)))
    ledger.begin(whole, "w", "1")
    ledger.settle(whole, Counts(4096, failed=4096), [letter(name) for name in whole.images])
    assert check_sums(ledger) == Counts(4096, failed=4096)
    assert ledger.replay(replace(whole, generation=1))
    assert check_sums(ledger) == Counts(4096)


# Anything, in any order, with repeats: against a model in plain Python.


@dataclass
class Entry:
    """One line of the model: the images that count here, and what became of them if that is known."""

    kind: str
    images: set[str]
    fates: dict[str, str] = field(default_factory=dict)
    rest: str = ""


class Books:
    """What a ledger must say, kept the slow way: per image."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.letters: dict[str, tuple[str, Reason]] = {}
        self.promised: dict[str, Chunk] = {}
        self.working: dict[str, tuple[str, str]] = {}
        self.crashes: dict[str, int] = {}
        self.risky: dict[str, int] = {}
        self.alive: set[str] = set()
        self.leases: set[str] = set()
        self.cancelled = False

    def kind(self, of: Chunk) -> str:
        return self.entries[of.id].kind if of.id in self.entries else ""

    def enter(self, of: Chunk) -> None:
        self.entries.setdefault(of.id, Entry("p", set(of.images)))

    def dispatch(self, of: Chunk) -> None:
        self.enter(of)
        if self.kind(of) == "p":
            self.promised[of.id] = of

    def begin(self, of: Chunk, owner: str, token: str) -> Ticket:
        if self.kind(of) == "d":
            return Ticket("settled")
        if self.kind(of) == "s":
            return Ticket("split", rest=self.promised.get(self.entries[of.id].rest))
        if self.cancelled:
            return Ticket("cancelled")
        holder = self.working.get(of.id)
        if holder not in {None, (owner, token)}:
            lives = holder[0] in self.alive
            if lives and holder[1] in self.leases:
                return Ticket("busy")
            if not lives:
                self.crashes[of.id] = self.crashes.get(of.id, 0) + 1
        self.enter(of)
        self.working[of.id] = (owner, token)
        self.leases.add(token)
        return Ticket("go", self.crashes.get(of.id, 0), self.risky.get(of.id, 0))

    def give_back(self, of: Chunk, owner: str, token: str) -> None:
        if self.working.get(of.id) == (owner, token):
            self._let_go(of)
            self.risky.pop(of.id, None)

    def _let_go(self, of: Chunk) -> None:
        if of.id in self.working:
            self.leases.discard(self.working.pop(of.id)[1])

    def _release(self, of: Chunk) -> None:
        self._let_go(of)
        for book in (self.crashes, self.risky, self.promised):
            book.pop(of.id, None)

    def _note(self, of: Chunk, fates: Mapping[str, str]) -> None:
        self.entries[of.id] = Entry("d", set(of.images), dict(fates))
        for image, fate in fates.items():
            self.letters.pop(image, None)
            if fate == "failed":
                self.letters[image] = (of.id, reason_of(image))

    def settle(self, of: Chunk, fates: Mapping[str, str]) -> None:
        if self.kind(of) in {"d", "s"}:
            return
        self._note(of, fates)
        self._release(of)

    def split(self, of: Chunk, done: Chunk, fates: Mapping[str, str], rest: Chunk) -> bool:
        if self.kind(of) in {"d", "s"}:
            return self.entries[of.id].rest == rest.id
        self.entries[of.id] = Entry("s", set(), rest=rest.id)
        self._note(done, fates)
        self.enter(rest)
        self._release(of)
        self.promised[rest.id] = rest
        return True

    def replay(self, of: Chunk) -> bool:
        if of.id in self.entries:
            return of.id in self.promised
        if not set(of.images) <= set(self.letters):
            return False
        for image in of.images:
            old = self.entries[self.letters.pop(image)[0]]
            old.images.remove(image)
            del old.fates[image]
        self.enter(of)
        self.promised[of.id] = of
        return True

    def counts(self) -> Counts:
        fates = [fate for entry in self.entries.values() for fate in entry.fates.values()]
        numbers = {name: fates.count(name) for name in ("embedded", "unchanged", "failed")}
        return Counts(submitted=sum(len(entry.images) for entry in self.entries.values()), **numbers)


def reason_of(image: str) -> Reason:
    """Some reason, always the same for an image."""
    return list(Reason)[sum(image.encode()) % len(Reason)]


WORKERS = ("one", "two", "three")
FATES = st.sampled_from(["embedded", "unchanged", "failed"])


class Distributed(RuleBasedStateMachine):
    """Dispatcher, workers that die and come back, redelivery and replays: any order, any repeat."""

    ledger: Ledger

    @initialize(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
    def start(self, sizes: list[int]) -> None:
        self.ledger.redis.flushall()
        self.ledger.open_run(about())
        self.books = Books()
        names = iter(f"{number}.png" for number in range(100))
        self.chunks = [self._chunk([next(names) for _ in range(size)]) for size in sizes]
        self.attempts: list[tuple[Chunk, str, str]] = []
        self.replays: list[Chunk] = []
        self.seen: set[str] = set()

    @staticmethod
    def _chunk(images: list[str], generation: int = 0) -> Chunk:
        return chunk(*images, columns={images[0]: {"of": images[0]}}, generation=generation)

    def _fates(self, data: st.DataObject, of: Chunk) -> tuple[dict[str, str], Counts, list[DeadLetter]]:
        fates = {image: data.draw(FATES) for image in of.images}
        values = list(fates.values())
        counts = Counts(len(values), values.count("embedded"), values.count("unchanged"), values.count("failed"))
        return fates, counts, [letter(name, reason_of(name)) for name, fate in fates.items() if fate == "failed"]

    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.chunks))
        if chosen in self.replays:
            return  # those have been entered by others
        kind = self.books.kind(chosen)
        assert self.ledger.dispatch(chosen) == Dispatched(is_new=kind == "", to_publish=kind in {"", "p"})
        self.books.dispatch(chosen)

    @rule(worker=st.sampled_from(WORKERS))
    def live(self, worker: str) -> None:
        living(self.ledger, worker)
        self.books.alive.add(worker)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def renew(self, data: st.DataObject, worker: str) -> None:
        """A heartbeat, with what the worker has in hand."""
        tokens = data.draw(
            st.lists(st.sampled_from([token for _, name, token in self.attempts if name == worker] or [""]))
        )
        self.ledger.beat(worker, {}, filter(None, tokens))
        self.live(worker)
        self.books.leases.update(filter(None, tokens))

    @precondition(lambda self: self.books.leases)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """A worker has let go of an attempt, but Redis lost what it wrote of that."""
        token = data.draw(st.sampled_from(sorted(self.books.leases)))
        self.ledger.redis.pexpire(f"{LEASE_PREFIX}{token}", 0)
        self.books.leases.discard(token)

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        self.ledger.redis.pexpire(f"{WORKER_PREFIX}{worker}", 0)
        self.books.alive.discard(worker)

    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def deliver(self, data: st.DataObject, worker: str) -> None:
        chosen = data.draw(st.sampled_from(self.chunks))
        self._begin(chosen, worker, f"token-{len(self.attempts)}")

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        self._begin(*data.draw(st.sampled_from(self.attempts)))

    def _begin(self, chosen: Chunk, worker: str, token: str) -> None:
        ticket = self.ledger.begin(chosen, worker, token)
        assert ticket == self.books.begin(chosen, worker, token)
        if ticket.verdict == "go" and (chosen, worker, token) not in self.attempts:
            self.attempts.append((chosen, worker, token))

    def _attempted(self, data: st.DataObject) -> tuple[Chunk, str, str]:
        """What somebody has or had in hand; mostly a chunk whose fate is still open."""
        late = self.attempts
        fresh = [attempt for attempt in late if self.books.kind(attempt[0]) == "p"]
        return data.draw(st.sampled_from(fresh or late) | st.sampled_from(late))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        chosen, _, _ = self._attempted(data)
        fates, counts, letters = self._fates(data, chosen)
        self.ledger.settle(chosen, counts, letters)
        self.books.settle(chosen, fates)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        chosen, _, _ = self._attempted(data)
        if len(chosen.images) == 1:
            return
        order = data.draw(st.permutations(chosen.images))
        cut = data.draw(st.integers(1, len(order) - 1))
        done, rest = (
            chosen.of([image for image in chosen.images if image in part]) for part in (order[:cut], order[cut:])
        )
        fates, counts, letters = self._fates(data, done)
        took_place = self.ledger.split(chosen, done, counts, letters, rest)
        assert took_place == self.books.split(chosen, done, fates, rest)
        if took_place and rest not in self.chunks:
            self.chunks.append(rest)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        chosen, worker, token = self._attempted(data)
        self.ledger.give_back(chosen, worker, token)
        self.books.give_back(chosen, worker, token)

    @precondition(lambda self: self.books.working)
    @rule(data=st.data())
    def note_risk(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([one for one in self.chunks if one.id in self.books.working]))
        self.ledger.note_risk(chosen)
        self.books.risky[chosen.id] = self.books.risky.get(chosen.id, 0) + 1

    @precondition(lambda self: self.books.letters)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        images = data.draw(st.lists(st.sampled_from(sorted(self.books.letters)), min_size=1, unique=True))
        again = self._chunk(images, self.ledger.next_generation(RUN))
        assert self.ledger.replay(again)
        assert self.books.replay(again)
        self.replays.append(again)
        self.chunks.append(again)

    @rule(data=st.data(), generation=st.integers(1, 3))
    def replay_anything(self, data: st.DataObject, generation: int) -> None:
        """Letters that are gone, images that never failed, replays repeated."""
        of = data.draw(st.sampled_from(self.replays or self.chunks))
        if of.generation == 0 or data.draw(st.booleans()):
            of = replace(of, generation=100 + generation)
        took_place = self.ledger.replay(of)
        assert took_place == self.books.replay(of)
        if took_place and of not in self.chunks:
            self.replays.append(of)
            self.chunks.append(of)

    @rule(cancelled=st.booleans())
    def cancel_or_go_on(self, cancelled: bool) -> None:
        self.ledger.set_state(RUN, "cancelled" if cancelled else "dispatching")
        self.books.cancelled = cancelled

    @invariant()
    def the_books_agree(self) -> None:
        entries = part(self.ledger, "chunks")
        counts = self.ledger.counts(RUN)
        assert counts == counted_again(entries.values()) == self.books.counts()
        assert {name: entry[0] for name, entry in entries.items()} == {
            name: entry.kind for name, entry in self.books.entries.items()
        }
        # No image is counted twice, and none is ever lost.
        counted = [image for entry in self.books.entries.values() for image in entry.images]
        assert len(counted) == len(set(counted)) == counts.submitted
        assert self.seen <= set(counted)
        self.seen = set(counted)
        found = {item.letter.key.removeprefix(f"{SOURCE}/"): item for item in self.ledger.failures(RUN)}
        assert {name: item.letter.reason for name, item in found.items()} == {
            name: reason for name, (_, reason) in self.books.letters.items()
        }
        assert len(found) == counts.failed
        assert all(item.columns in ({}, {"of": name}) for name, item in found.items())
        assert {one.id: one for one in self.ledger.promised(RUN)} == self.books.promised
        leases = {str(name).removeprefix(LEASE_PREFIX) for name in self.ledger.redis.scan_iter(f"{LEASE_PREFIX}*")}
        assert leases == self.books.leases
        for name in ("working", "crashes", "risky"):
            assert set(part(self.ledger, name)) == set(getattr(self.books, name))
        if all(entry.kind != "p" for entry in self.books.entries.values()):
            assert counts.submitted == counts.settled

    def teardown(self) -> None:
        """Whatever happened: one living worker, to whom everything is delivered once more, completes the run."""
        if not hasattr(self, "books"):
            return
        self.cancel_or_go_on(cancelled=False)
        for worker in WORKERS:
            self.die(worker)
        for number, chosen in enumerate([*self.chunks, *self.ledger.promised(RUN)]):
            if self.ledger.begin(chosen, "last", str(number)).verdict == "go":
                self.ledger.settle(chosen, all_embedded(chosen), [])
        counts = check_sums(self.ledger)
        everything = {image for one in self.chunks for image in one.images}
        assert counts.submitted == counts.settled == len(everything)
        assert list(self.ledger.promised(RUN)) == []
        assert part(self.ledger, "working") == {}


@pytest.mark.timeout(900)  # a failure takes minutes to be made small
def test_any_order_of_anything(ledger: Ledger) -> None:
    machine = type("Machine", (Distributed,), {"ledger": ledger})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
