"""Rows of concurrent requests -> few model calls, and each row's vector back to the request that sent it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import McipError

Row = TypeVar("Row")
_SMOOTHING = 0.2


class OverloadedError(McipError):
    """More work is waiting than the server takes on; `retry_after_s` is when asking again makes sense."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, min(60, math.ceil(retry_after_s)))


@dataclass(slots=True, eq=False)
class _Job(Generic[Row]):
    """The rows of one request; `vectors[i]` is the answer to `rows[i]`."""

    rows: Sequence[Row]
    done: asyncio.Future[NDArray[np.float32]]
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    taken: int = 0


_Batch = list[tuple[_Job[Row], int]]


class Batcher(Generic[Row]):
    """Encodes rows in batches, one batch at a time: whatever came in while a batch ran makes up the next one.

    No request waits for others to come. Waiting requests share each batch evenly, so that one long list does not hold up
    single rows. Belongs to one event loop.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Row]], NDArray[np.float32]],
        *,
        largest: int,
        waiting_limit: int,
        patience_s: float,
        on_batch: Callable[[int, float], None],
    ) -> None:
        """Prepare; `run` does the work.

        Args:
            encode: N rows -> float32 `[N, D]`; runs in a thread of its own, never twice at once.
            largest: rows in one call of `encode`.
            waiting_limit: rows that may wait; at least as many as one request may bring.
            patience_s: rows that would wait longer are refused.
            on_batch: told the rows and seconds of each call.
        """
        self._encode = encode
        self._largest = largest
        self._waiting_limit = waiting_limit
        self._patience_s = patience_s
        self._on_batch = on_batch
        self._jobs: deque[_Job[Row]] = deque()
        self._wake = asyncio.Event()
        self._row_s = 0.0
        self._busy_since: float | None = None
        self.waiting = 0

    async def encode(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Vectors of the rows, float32 `[N, D]`, in their order.

        Raises:
            OverloadedError: too many rows are waiting already.
        """
        # A batch that is slow already says more than those before it.
        expected_s = self.stuck_for() + self.waiting * self._row_s
        if self.waiting + len(rows) > self._waiting_limit or expected_s > self._patience_s:
            raise OverloadedError("too many texts or pictures are waiting for the model", expected_s)
        job = _Job(rows, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.waiting += len(rows)
        self._wake.set()
        return await job.done

    def stuck_for(self) -> float:
        """Seconds that the running batch has taken so far; 0 if none runs."""
        return 0.0 if self._busy_since is None else monotonic() - self._busy_since

    async def run(self) -> None:
        """Work until cancelled."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        try:
            while True:
                await self._wake.wait()
                # Requests that are already in the loop's queue get into this batch.
                await asyncio.sleep(0)
                batch = self._take()
                if batch:
                    await self._work_on(batch, thread)
                if not self._jobs:
                    self._wake.clear()
        finally:
            # Nobody is left who waits for a batch that still runs.
            thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> _Batch[Row]:
        batch: _Batch[Row] = []
        while self._jobs and len(batch) < self._largest:
            share = max(1, (self._largest - len(batch)) // len(self._jobs))
            job = self._jobs.popleft()
            left = len(job.rows) - job.taken
            if job.done.done():  # its client went away, or one of its rows failed
                self.waiting -= left
                continue
            count = min(share, left)
            batch += [(job, index) for index in range(job.taken, job.taken + count)]
            job.taken += count
            self.waiting -= count
            if count < left:
                self._jobs.append(job)
        return batch

    async def _work_on(self, batch: _Batch[Row], thread: ThreadPoolExecutor) -> None:
        started = self._busy_since = monotonic()
        try:
            answered = await self._encoded(batch, thread)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it goes to the requests it belongs to
            await self._one_by_one(batch, thread, exc)
        else:
            self._hand_out(batch, answered)
        finally:
            self._busy_since = None
        taken_s = monotonic() - started
        self._row_s = smoothed(self._row_s, taken_s / len(batch))
        self._on_batch(len(batch), taken_s)

    async def _encoded(self, batch: _Batch[Row], thread: ThreadPoolExecutor) -> NDArray[np.float32]:
        rows = [job.rows[index] for job, index in batch]
        vectors = await asyncio.get_running_loop().run_in_executor(thread, self._encode, rows)
        if len(vectors) != len(rows):
            raise RuntimeError(f"the encoder answered {len(vectors)} vectors to {len(rows)} rows")
        return vectors

    async def _one_by_one(self, batch: _Batch[Row], thread: ThreadPoolExecutor, failure: Exception) -> None:
        """A row that cannot be encoded fails its own request, not its neighbours'."""
        if len({job for job, _ in batch}) == 1:
            fail(batch[0][0].done, failure)
            return
        for item in batch:
            try:
                self._hand_out([item], await self._encoded([item], thread))
            except Exception as exc:  # noqa: BLE001
                fail(item[0].done, exc)

    @staticmethod
    def _hand_out(batch: _Batch[Row], vectors: NDArray[np.float32]) -> None:
        for (job, index), vector in zip(batch, vectors, strict=True):
            job.vectors[index] = vector
            if len(job.vectors) == len(job.rows) and not job.done.done():
                job.done.set_result(np.stack([job.vectors[position] for position in range(len(job.rows))]))


def fail(done: asyncio.Future[Any], failure: BaseException) -> None:
    """Hand a failure to whoever waits, if anybody still does."""
    if not done.done():
        done.set_exception(failure)


def smoothed(before_s: float, now_s: float) -> float:
    """A running mean of seconds; the first one counts alone."""
    return now_s if before_s == 0 else (1 - _SMOOTHING) * before_s + _SMOOTHING * now_s
