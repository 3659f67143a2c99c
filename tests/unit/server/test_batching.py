"""Every row gets its own vector, whoever else asks at the same time; what is too much is refused; what fails fails alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.server.batching import Batcher, OverloadedError


class Recorder:
    """Encodes a number as (number, -number), and remembers the batches. Number 666 cannot be encoded."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, rows: Sequence[int]) -> NDArray[np.float32]:
        self.gate.wait(10)
        time.sleep(self.seconds)
        self.batches.append(list(rows))
        if 666 in rows:
            raise InvalidQueryError("this one cannot be encoded")
        return np.array([[row, -row] for row in rows], dtype=np.float32)


def run(
    encode: Callable[[Sequence[int]], NDArray[np.float32]],
    work: Callable[[Batcher[int]], Awaitable[Any]],
    *,
    largest: int = 8,
    waiting_limit: int = 10_000,
    patience_s: float = 1000.0,
) -> Any:
    """Run `work` while a batcher runs."""

    async def main() -> Any:
        batcher: Batcher[int] = Batcher(
            encode,
            largest=largest,
            waiting_limit=waiting_limit,
            patience_s=patience_s,
            on_batch=lambda _rows, _seconds: None,
        )
        worker = asyncio.create_task(batcher.run())
        try:
            answer = await asyncio.wait_for(work(batcher), 30)
            assert batcher.waiting == 0
            return answer
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    return asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    largest=st.integers(1, 16),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.001]), min_size=20, max_size=20),
)
def test_every_request_gets_the_vectors_of_its_own_rows_in_order(
    sizes: list[int], largest: int, pauses: list[float]
) -> None:
    recorder = Recorder()

    async def clients(batcher: Batcher[int]) -> list[NDArray[np.float32]]:
        async def client(number: int, size: int) -> NDArray[np.float32]:
            await asyncio.sleep(pauses[number])
            return await batcher.encode([1000 * number + row for row in range(size)])

        return await asyncio.gather(*(client(number, size) for number, size in enumerate(sizes)))

    answers = run(recorder, clients, largest=largest)
    for number, (size, answer) in enumerate(zip(sizes, answers, strict=True)):
        expected = [[1000 * number + row, -(1000 * number + row)] for row in range(size)]
        assert answer.tolist() == expected
    assert max(map(len, recorder.batches)) <= largest
    assert sum(map(len, recorder.batches)) == sum(sizes)


def test_requests_that_come_together_share_a_batch() -> None:
    recorder = Recorder()

    async def burst(batcher: Batcher[int]) -> None:
        await asyncio.gather(*(batcher.encode([row]) for row in range(64)))

    run(recorder, burst, largest=64)
    assert [len(batch) for batch in recorder.batches] == [64]


def test_a_long_list_does_not_hold_up_a_single_row() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(batcher: Batcher[int]) -> int:
        long = asyncio.create_task(batcher.encode(list(range(1000, 1400))))
        await asyncio.sleep(0.01)
        single = asyncio.create_task(batcher.encode([7]))
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await single
        batches_so_far = len(recorder.batches)
        await long
        return batches_so_far

    assert run(recorder, work) <= 3, "at most the batch that ran, its own, and one in between"


def test_a_row_that_fails_fails_its_own_request_only() -> None:
    async def work(batcher: Batcher[int]) -> list[Any]:
        return await asyncio.gather(*(batcher.encode([row]) for row in (1, 666, 2)), return_exceptions=True)

    first, bad, second = run(Recorder(), work)
    assert (first.tolist(), second.tolist()) == ([[1, -1]], [[2, -2]])
    assert isinstance(bad, InvalidQueryError)


def test_a_failure_in_a_long_request_ends_it_and_the_next_one_works() -> None:
    recorder = Recorder()

    async def work(batcher: Batcher[int]) -> Any:
        with pytest.raises(InvalidQueryError):
            await batcher.encode([*range(20), 666, *range(100)])
        return await batcher.encode([5])

    assert run(recorder, work).tolist() == [[5, -5]]
    assert sum(map(len, recorder.batches)) < 50, "rows after the failure are not encoded for nobody"


def test_an_encoder_that_loses_a_row_is_an_error_and_not_a_skew() -> None:
    async def work(batcher: Batcher[int]) -> Any:
        return await asyncio.gather(*(batcher.encode([row]) for row in range(4)), return_exceptions=True)

    answers = run(lambda rows: np.zeros((len(rows) - 1, 2), dtype=np.float32), work)
    assert all(isinstance(answer, RuntimeError) for answer in answers)


def test_what_does_not_fit_is_refused_at_once_and_the_rest_is_answered() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(batcher: Batcher[int]) -> list[Any]:
        tasks = [asyncio.create_task(batcher.encode([row] * 4)) for row in range(6)]
        await asyncio.sleep(0.05)
        refused = [task for task in tasks if task.done()]
        assert refused, "a refusal must not wait for the queue"
        recorder.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(recorder, work, largest=4, waiting_limit=12)
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert len(refused) == 3  # 12 rows wait before the first batch is taken
    assert all(1 <= error.retry_after_s <= 60 for error in refused)
    assert [answer.tolist() for answer in answers[:3]] == [[[row, -row]] * 4 for row in range(3)]


def test_patience_is_measured_in_seconds() -> None:
    recorder = Recorder(seconds=0.05)

    async def work(batcher: Batcher[int]) -> None:
        await batcher.encode([1])  # from now on it is known that a row takes 50 ms
        waiting = asyncio.create_task(batcher.encode(list(range(50))))
        await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as refused:
            await batcher.encode([2])
        assert 2 <= refused.value.retry_after_s <= 60, "some 50 rows of at least 50 ms"
        assert len(await waiting) == 50

    run(recorder, work, patience_s=0.5)


def test_patience_sees_a_batch_that_is_slow_for_the_first_time() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(batcher: Batcher[int]) -> None:
        slow = asyncio.create_task(batcher.encode([1]))
        await asyncio.sleep(0.3)
        with pytest.raises(OverloadedError):
            await batcher.encode([2])
        recorder.gate.set()
        await slow

    run(recorder, work, patience_s=0.2)


def test_rows_of_a_client_that_went_away_are_not_encoded() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(batcher: Batcher[int]) -> None:
        first = asyncio.create_task(batcher.encode([1]))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.encode([2] * 100))
        await asyncio.sleep(0.01)
        gone.cancel()
        recorder.gate.set()
        await first
        await batcher.encode([3])

    run(recorder, work)
    assert [row for batch in recorder.batches for row in batch] == [1, 3]


def test_a_batch_that_does_not_end_is_seen_from_outside() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def work(batcher: Batcher[int]) -> float:
        assert batcher.stuck_for() == 0.0
        task = asyncio.create_task(batcher.encode([1]))
        await asyncio.sleep(0.1)
        stuck = batcher.stuck_for()
        recorder.gate.set()
        await task
        return stuck

    assert run(recorder, work) >= 0.05
