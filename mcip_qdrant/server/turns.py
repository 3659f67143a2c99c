"""What rows need before the model can take them, done in a few threads in which requests take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from mcip_qdrant.server.batching import OverloadedError, fail, smoothed

Row = TypeVar("Row")
Ready = TypeVar("Ready")


@dataclass(slots=True, eq=False)
class _Job(Generic[Row, Ready]):
    """The rows of one request; `ready[i]` is made of `rows[i]`."""

    rows: Sequence[Row]
    costs: Sequence[float]
    done: asyncio.Future[list[Ready]]
    ready: dict[int, Ready] = field(default_factory=dict)
    taken: int = 0
    cost_left: float = 0.0


class Turns(Generic[Row, Ready]):
    """Prepares the rows of many requests. Whoever waits gets the next turn, so that one long list holds up nobody else.

    Belongs to one event loop.
    """

    def __init__(
        self,
        prepare: Callable[[Row], Ready],
        *,
        cost: Callable[[Row], float],
        threads: int,
        waiting_limit: int,
        patience_s: float,
    ) -> None:
        """Prepare nothing yet.

        Args:
            prepare: runs in several threads at once.
            cost: what a row takes, in turns; a turn takes one row, or several that together cost no more than 1.
            waiting_limit: rows that may wait; at least as many as one request may bring.
            patience_s: rows that would wait longer for the turns of others are refused.
        """
        self._prepare = prepare
        self._cost = cost
        self._threads = threads
        self._waiting_limit = waiting_limit
        self._patience_s = patience_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._jobs: deque[_Job[Row, Ready]] = deque()
        self._running: list[float] = []
        self._turn_s = 0.0
        self.waiting = 0

    async def prepare(self, rows: Sequence[Row]) -> list[Ready]:
        """What became of the rows, in their order.

        Raises:
            OverloadedError: too many rows are waiting already.
            Exception: what `prepare` raised for one of them.
        """
        costs = [self._cost(row) for row in rows]
        cost = sum(costs)
        expected_s = self._expected_s(cost)
        if self.waiting + len(rows) > self._waiting_limit or expected_s > self._patience_s:
            raise OverloadedError("too many texts or pictures are waiting to be prepared for the model", expected_s)
        job = _Job[Row, Ready](rows, costs, asyncio.get_running_loop().create_future(), cost_left=cost)
        self._jobs.append(job)
        self.waiting += len(rows)
        self._start()
        return await job.done

    def close(self) -> None:
        """Begin no more turns."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _expected_s(self, cost: float) -> float:
        """How long rows of this cost would wait: until a thread is free, and for a turn of every other request for each of theirs."""
        others = sum(
            min(job.cost_left, max(cost, 1.0, job.costs[job.taken])) for job in self._jobs if not job.done.done()
        )
        # A turn that has taken long may go on for as long again; what is known of others says nothing about it.
        running_s = monotonic() - max(self._running) if len(self._running) == self._threads else 0.0
        return running_s + others * self._turn_s / self._threads

    def _start(self) -> None:
        while self._jobs and len(self._running) < self._threads:
            job = self._jobs.popleft()
            left = len(job.rows) - job.taken
            if job.done.done():  # its client went away, or one of its rows failed
                self.waiting -= left
                continue
            chosen = self._take(job)
            self.waiting -= len(chosen)
            if len(chosen) < left:
                self._jobs.append(job)
            self._run(job, chosen)

    @staticmethod
    def _take(job: _Job[Row, Ready]) -> range:
        first = job.taken
        cost = 0.0
        while job.taken < len(job.rows) and (job.taken == first or cost + job.costs[job.taken] <= 1.0):
            cost += job.costs[job.taken]
            job.taken += 1
        job.cost_left -= cost
        return range(first, job.taken)

    def _run(self, job: _Job[Row, Ready], chosen: range) -> None:
        started = monotonic()
        self._running.append(started)
        rows = [job.rows[index] for index in chosen]
        working = asyncio.get_running_loop().run_in_executor(self._pool, self._all_of, rows)
        working.add_done_callback(lambda ended: self._ended(job, chosen, started, ended))

    def _all_of(self, rows: Sequence[Row]) -> list[Ready]:
        return [self._prepare(row) for row in rows]

    def _ended(self, job: _Job[Row, Ready], chosen: range, started: float, turn: asyncio.Future[list[Ready]]) -> None:
        self._running.remove(started)
        if turn.cancelled():
            return
        # A short turn takes a while to begin and to end; a full one must not seem as slow as many of those.
        cost = max(1.0, sum(job.costs[index] for index in chosen))
        self._turn_s = smoothed(self._turn_s, (monotonic() - started) / cost)
        if (failure := turn.exception()) is not None:
            fail(job.done, failure)
        else:
            job.ready.update(zip(chosen, turn.result(), strict=True))
            if len(job.ready) == len(job.rows) and not job.done.done():
                job.done.set_result([job.ready[index] for index in range(len(job.rows))])
        self._start()
