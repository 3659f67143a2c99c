"""Whoever waits gets the next turn, what fails fails alone, and what would wait too long is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.server.batching import OverloadedError
from mcip_qdrant.server.turns import Turns


class Recorder:
    """Turns a number into its negative, and remembers the order. Number 666 cannot be prepared."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: list[int] = []
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, row: int) -> int:
        self.gate.wait(20)
        time.sleep(self.seconds)
        self.seen.append(row)
        if row == 666:
            raise InvalidQueryError("this one cannot be prepared")
        return -row


def run(
    prepare: Callable[[int], int],
    work: Callable[[Turns[int, int]], Awaitable[Any]],
    *,
    cost: Callable[[int], float] = lambda _row: 1.0,
    threads: int = 1,
    waiting_limit: int = 10_000,
    patience_s: float = 1000.0,
) -> Any:
    """Run `work` with turns to take."""

    async def main() -> Any:
        turns = Turns(prepare, cost=cost, threads=threads, waiting_limit=waiting_limit, patience_s=patience_s)
        try:
            answer = await asyncio.wait_for(work(turns), 60)
            assert turns.waiting == 0
            return answer
        finally:
            turns.close()

    return asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    costs=st.lists(st.sampled_from([0.01, 0.3, 1.0, 5.0]), min_size=7, max_size=7),
    threads=st.integers(1, 4),
)
def test_every_request_gets_its_own_rows_in_order(sizes: list[int], costs: list[float], threads: int) -> None:
    async def clients(turns: Turns[int, int]) -> list[list[int]]:
        return await asyncio.gather(
            *(turns.prepare([1000 * number + row for row in range(size)]) for number, size in enumerate(sizes))
        )

    answers = run(Recorder(), clients, cost=lambda row: costs[row % 7], threads=threads)
    assert answers == [[-(1000 * number + row) for row in range(size)] for number, size in enumerate(sizes)]


@pytest.mark.parametrize("cost", [1.0, 0.25, 40.0])
def test_a_long_list_does_not_hold_up_a_single_row(cost: float) -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(turns: Turns[int, int]) -> None:
        long = asyncio.create_task(turns.prepare(list(range(1000, 1400))))
        await asyncio.sleep(0.01)
        single = asyncio.create_task(turns.prepare([7]))
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await single
        await long

    run(recorder, work, cost=lambda _row: cost)
    assert recorder.seen.index(7) <= 2 * max(1, round(1 / cost)), "after the turn that ran and at most one more"


def test_one_request_alone_uses_all_threads() -> None:
    together = threading.Barrier(3, timeout=20)

    def meet(row: int) -> int:
        together.wait()
        return row

    assert run(meet, lambda turns: turns.prepare([1, 2, 3]), threads=3) == [1, 2, 3]


def test_a_row_that_fails_ends_its_own_request_only() -> None:
    recorder = Recorder()

    async def work(turns: Turns[int, int]) -> list[Any]:
        lists = ([1, 2], [666, *range(100, 200)], [3])
        return await asyncio.gather(*(turns.prepare(rows) for rows in lists), return_exceptions=True)

    first, bad, last = run(recorder, work)
    assert (first, last) == ([-1, -2], [-3])
    assert isinstance(bad, InvalidQueryError)
    assert len(recorder.seen) < 20, "the rest is not prepared for nobody"


def test_what_a_client_that_went_away_left_behind_is_not_prepared() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(turns: Turns[int, int]) -> None:
        first = asyncio.create_task(turns.prepare([1]))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(turns.prepare([2] * 100))
        await asyncio.sleep(0.01)
        gone.cancel()
        recorder.gate.set()
        await first
        await turns.prepare([3])

    run(recorder, work)
    assert recorder.seen == [1, 3]


def test_too_many_rows_are_refused_at_once() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(turns: Turns[int, int]) -> None:
        waiting = asyncio.create_task(turns.prepare([1] * 10))  # one is at work, nine wait
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await turns.prepare([2, 3])
        recorder.gate.set()
        await waiting

    run(recorder, work, waiting_limit=10)


def test_patience_counts_the_turns_of_others_and_not_their_rows() -> None:
    recorder = Recorder(seconds=0.05)

    async def work(turns: Turns[int, int]) -> None:
        await turns.prepare([1])  # from now on it is known that a turn takes 50 ms
        long = asyncio.create_task(turns.prepare(list(range(100))))
        await asyncio.sleep(0.01)
        assert await turns.prepare([2]) == [-2], "one turn of the other's, not a hundred"
        with pytest.raises(OverloadedError) as refused:
            await turns.prepare(list(range(100)))
        assert 2 <= refused.value.retry_after_s <= 60
        assert len(await long) == 100

    run(recorder, work, patience_s=1.5)


def test_patience_sees_a_turn_that_is_slow_for_the_first_time() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(turns: Turns[int, int]) -> None:
        slow = asyncio.create_task(turns.prepare([1]))
        await asyncio.sleep(0.3)
        with pytest.raises(OverloadedError):
            await turns.prepare([2])
        recorder.gate.set()
        await slow

    run(recorder, work, patience_s=0.2)
