"""What the tests of the workers share: chunks, the model's pictures, and the sum that a ledger must always be."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from unit_support import SPACE_A

from mcip_qdrant.errors import Reason
from mcip_qdrant.report import DeadLetter
from mcip_qdrant.workers.broker import TASK, queue_name
from mcip_qdrant.workers.ledger import PREFIX, WORKER_PREFIX, Ledger
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.records import Counts

RUN, SOURCE = "run-1", "s"
QUEUE = queue_name(SPACE_A, SOURCE)


def chunk(*images: str, **changes: Any) -> Chunk:
    """A chunk of these images, otherwise ordinary."""
    fields: dict[str, Any] = {
        "run": RUN,
        "collection": "images",
        "space_id": SPACE_A,
        "source": SOURCE,
        "images": images or ("a.png", "b.png", "c.png"),
        "ingested_at": "2025-01-01T00:00:00Z",
        "max_bytes": 10**7,
        "max_pixels": 10**8,
        **changes,
    }
    return Chunk(**fields)


def living(ledger: Ledger, worker: str) -> None:
    """A worker whose heartbeat does not end by itself."""
    ledger.beat(worker, {})
    ledger.redis.persist(f"{WORKER_PREFIX}{worker}")


def letter(relative: str, reason: Reason = Reason.CORRUPT, message: str = "damaged") -> DeadLetter:
    """A dead letter of one image."""
    return DeadLetter(f"{SOURCE}/{relative}", reason, message)


def all_embedded(of: Chunk) -> Counts:
    """The counts of a chunk in which nothing failed."""
    return Counts(len(of.images), embedded=len(of.images))


def part(ledger: Ledger, name: str, run: str = RUN) -> dict[str, str]:
    """One of a run's hashes, as Redis holds it."""
    found: Any = ledger.redis.hgetall(f"{PREFIX}run:{run}:{name}")
    return dict(found)


def counted_again(entries: Iterable[str]) -> Counts:
    """The totals, worked out from nothing but the entries of the `chunks` hash."""
    sums = [0, 0, 0, 0]
    for entry in entries:
        kind, *numbers = entry.split(":")
        assert kind in {"p", "d", "s"}, entry
        if kind == "s":
            continue
        assert len(numbers) == (1 if kind == "p" else 4), entry
        for index, number in enumerate(numbers):
            assert int(number) >= 0, entry
            sums[index] += int(number)
        if kind == "d":
            assert int(numbers[0]) == sum(map(int, numbers[1:])), entry
    return Counts(*sums)


def check_sums(ledger: Ledger, run: str = RUN) -> Counts:
    """Totals are the sum of the entries, and every failed image has its letter."""
    counts = ledger.counts(run)
    assert counts == counted_again(part(ledger, "chunks", run).values())
    assert len(part(ledger, "failures", run)) == counts.failed
    return counts


def taken(ledger: Ledger, queue: str) -> Chunk | None:
    """The next chunk of a queue, taken as a worker would (and acknowledged at once); None if it is empty."""
    item: Any = ledger.redis.rpop(queue)
    if item is None:
        return None
    message = json.loads(item)
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == TASK
    (content,), named, _ = json.loads(base64.b64decode(message["body"]))
    assert named == {}
    return Chunk.from_message(content)
