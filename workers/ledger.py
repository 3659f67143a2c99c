"""The ledger: what became of every chunk of a run, kept in Redis.

`submitted = embedded + unchanged + failed` holds whenever a run is quiet, however often chunks were delivered again: an entry is
overwritten, never added to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import redis

from mcip_qdrant.errors import Reason, RunError
from mcip_qdrant.report import DeadLetter
from mcip_qdrant.workers import scripts
from mcip_qdrant.workers.broker import BrokerSettings, Patience, broker_errors, open_redis
from mcip_qdrant.workers.message import Chunk
from mcip_qdrant.workers.records import Counts, Dispatched, FailedImage, RunInfo, State, Ticket
from mcip_qdrant.workers.scripts import LEASE_PREFIX, WORKER_PREFIX

PREFIX: Final = "mcip_qdrant:"
_RUNS: Final = f"{PREFIX}runs"
_REFUSED: Final = f"{PREFIX}refusals"
_PARTS: Final = ("chunks", "totals", "info", "failures", "working", "crashes", "risky", "outbox")
_KEPT_S: Final = 30 * 24 * 3600
_MAX_REFUSED: Final = 1000
MAX_OUTBOX: Final = 512
"""So many messages of a run are kept beside the queue, however many chunks are pending."""


class Ledger:
    """All runs of one broker."""

    def __init__(self, settings: BrokerSettings) -> None:
        """Connect.

        Raises:
            BrokerError, ConfigurationError: as `open_redis`.
        """
        self.settings = settings
        self.patience = Patience(settings.shown)
        self.redis: redis.Redis = open_redis(settings, self.patience)
        self._scripts = {
            name: self.redis.register_script(scripts.PREFIXES + scripts.PRELUDE + getattr(scripts, name))
            for name in ("DISPATCH", "ALL_DISPATCHED", "BEGIN", "GIVE_BACK", "SETTLE", "SPLIT", "REPLAY")
        }

    def _keys(self, run: str) -> list[str]:
        return [f"{PREFIX}run:{run}:{part}" for part in _PARTS]

    def _key(self, run: str, part: str) -> str:
        return f"{PREFIX}run:{run}:{part}"

    def _call(self, name: str, run: str, *arguments: object) -> Any:
        with broker_errors(self.settings):
            return self._scripts[name](keys=self._keys(run), args=[f"{time.time():.3f}", _KEPT_S, *map(str, arguments)])

    # The dispatcher's side.

    def open_run(self, info: RunInfo) -> None:
        """Write what a run is about."""
        with broker_errors(self.settings):
            fields = {
                name: value for name, value in asdict(info).items() if name not in {"sample", "last_at", "replays"}
            }
            mapping: dict[Any, Any] = {**fields, "sample": json.dumps(info.sample)}
            self.redis.hset(self._key(info.run, "info"), mapping=mapping)
            self.redis.expire(self._key(info.run, "info"), _KEPT_S)
            self.redis.zadd(_RUNS, {info.run: info.started_at})

    def set_state(self, run: str, state: State) -> None:
        """Say how far the dispatcher is, or that the run is cancelled."""
        with broker_errors(self.settings):
            self.redis.hset(self._key(run, "info"), "state", state)

    def all_dispatched(self, run: str) -> None:
        """Say that the listing has come to its end, unless the run was cancelled."""
        self._call("ALL_DISPATCHED", run)

    def dispatch(self, chunk: Chunk) -> Dispatched:
        """Enter a chunk, whose message is kept until its fate is known."""
        message = json.dumps(chunk.to_message())
        entry = self._call("DISPATCH", chunk.run, chunk.id, len(chunk.images), message, MAX_OUTBOX)
        return Dispatched(is_new=entry is None, to_publish=entry is None or str(entry).startswith("p"))

    def next_generation(self, run: str) -> int:
        """A number for one replay of dead letters."""
        with broker_errors(self.settings):
            return int(self.redis.hincrby(self._key(run, "info"), "replays", 1))

    def replay(self, chunk: Chunk) -> bool:
        """Turn dead letters into a chunk of their own; False if there is nothing to publish: they are none any more."""
        keys = [ref.key for ref in chunk.refs()]
        return int(self._call("REPLAY", chunk.run, chunk.id, json.dumps(keys), json.dumps(chunk.to_message()))) == 1

    def promised(self, run: str) -> Iterator[Chunk]:
        """Chunks whose fate is not known yet, as far as their messages are kept: in the queue, in a worker's hands, or lost."""
        with broker_errors(self.settings):
            for _, message in self.redis.hscan_iter(self._key(run, "outbox")):
                yield Chunk.from_message(json.loads(message))

    def open_of(self, run: str, chunks: Iterable[str]) -> set[str]:
        """Of some chunks, by id, those whose fate is not known yet; what is left of one that was split stands for it."""
        asked = list(chunks)
        found: set[str] = set()
        while asked:
            with broker_errors(self.settings):
                entries: Any = self.redis.hmget(self._key(run, "chunks"), asked)
            told = list(zip(asked, entries, strict=True))
            found.update(chunk for chunk, entry in told if entry is None or entry.startswith("p"))
            asked = [entry.removeprefix("s:") for _, entry in told if entry is not None and entry.startswith("s")]
        return found

    def unheld(self, run: str) -> list[Chunk]:
        """Promised chunks that no living worker has in hand: waiting in the queue, or lost."""
        with broker_errors(self.settings):
            holders: Any = self.redis.hgetall(self._key(run, "working"))
            held = set()
            for chunk, holder in holders.items():
                worker, _, token = holder.partition(" ")
                if self.redis.exists(f"{WORKER_PREFIX}{worker}", f"{LEASE_PREFIX}{token}") == 2:
                    held.add(chunk)
        return [chunk for chunk in self.promised(run) if chunk.id not in held]

    # The worker's side.

    def begin(self, chunk: Chunk, owner: str, token: str) -> Ticket:
        """Ask for leave to work on a chunk. `token` names this attempt, `owner` the worker whose heartbeat covers it."""
        answer = self._call("BEGIN", chunk.run, chunk.id, len(chunk.images), owner, token, self._lease_ms)
        if answer[0] == "go":
            return Ticket("go", int(answer[1]), int(answer[2]))
        rest = Chunk.from_message(json.loads(answer[1])) if answer[0] == "split" and answer[1] else None
        return Ticket(answer[0], rest=rest)

    def give_back(self, chunk: Chunk, owner: str, token: str) -> None:
        """Take the worker's name off a chunk that it returns unfinished: not a crash, and what was risky went well.

        Nothing changes where the attempt no longer has it: `owner` and `token` are those of `begin`.
        """
        self._call("GIVE_BACK", chunk.run, chunk.id, owner, token)

    def note_risk(self, chunk: Chunk) -> None:
        """Say that a chunk, which already cost a worker, now goes beyond decoding."""
        with broker_errors(self.settings):
            self.redis.hincrby(self._key(chunk.run, "risky"), chunk.id, 1)

    def settle(self, chunk: Chunk, counts: Counts, letters: Sequence[DeadLetter]) -> None:
        """Enter what became of a chunk, unless another worker has done so before."""
        keys = [ref.key for ref in chunk.refs()]
        self._call("SETTLE", chunk.run, chunk.id, counts.entry, json.dumps(keys), _letters(letters, chunk))

    def split(self, chunk: Chunk, done: Chunk, counts: Counts, letters: Sequence[DeadLetter], rest: Chunk) -> bool:
        """Replace a chunk by its done part and the rest, which is promised until somebody finishes it.

        False if another worker has settled or split the chunk before: then the rest must not be published.
        """
        keys = [ref.key for ref in done.refs()]
        answer = self._call(
            "SPLIT",
            *(chunk.run, chunk.id, done.id, counts.entry, rest.id, len(rest.images), json.dumps(rest.to_message())),
            *(json.dumps(keys), _letters(letters, done)),
        )
        return int(answer) == 1

    def refuse(self, message: object, why: str) -> None:
        """Keep a message that no worker of this version can read; one that is sent again is kept once."""
        with broker_errors(self.settings):
            record = json.dumps({"why": why, "message": message}, default=str)
            self.redis.zadd(_REFUSED, {record: time.time()})
            self.redis.zremrangebyrank(_REFUSED, 0, -_MAX_REFUSED - 1)

    # Everybody's side.

    def runs(self, limit: int = 20) -> list[str]:
        """The latest runs, newest first."""
        with broker_errors(self.settings):
            self.redis.zremrangebyscore(_RUNS, "-inf", time.time() - _KEPT_S)
            return [str(run) for run in self.redis.zrevrange(_RUNS, 0, limit - 1)]

    def info(self, run: str) -> RunInfo:
        """What a run is about.

        Raises:
            RunError: unknown, or older than 30 days.
        """
        with broker_errors(self.settings):
            found: Any = self.redis.hgetall(self._key(run, "info"))
        if "sample" not in found:
            raise RunError(f"no run {run!r} at {self.settings.shown}; list them with: mcip-qdrant status")
        state: Any = found["state"]
        return RunInfo(
            run,
            found["model"],
            found["root"],
            state,
            float(found["started_at"]),
            json.loads(found["sample"]),
            int(found["chunk_size"]),
            float(found.get("last_at", 0)),
            int(found.get("replays", 0)),
        )

    def counts(self, run: str) -> Counts:
        """Counts of a run so far. While it runs, `submitted` is what was dispatched."""
        with broker_errors(self.settings):
            found = self.redis.hgetall(self._key(run, "totals"))
        return Counts(**{name: int(found.get(name, 0)) for name in Counts.__dataclass_fields__})

    def failures(self, run: str) -> Iterator[FailedImage]:
        """Dead letters of a run, in no particular order."""
        with broker_errors(self.settings):
            for key, value in self.redis.hscan_iter(self._key(run, "failures")):
                record = json.loads(value)
                letter = DeadLetter(key, Reason(record["reason"]), record["message"])
                yield FailedImage(letter, record.get("columns", {}))

    def refused(self) -> list[dict[str, Any]]:
        """Messages that workers refused to read, newest first."""
        with broker_errors(self.settings):
            found: Any = self.redis.zrevrange(_REFUSED, 0, -1, withscores=True)
        return [{**json.loads(item), "at": at} for item, at in found]

    def why_refused(self, run: str) -> str | None:
        """Why workers refused a message of this run, if they did: the latest reason."""
        messages = ((item["message"], item["why"]) for item in self.refused())
        return next((why for message, why in messages if isinstance(message, dict) and message.get("run") == run), None)

    def workers(self) -> dict[str, dict[str, Any]]:
        """Living workers by id, as they describe themselves."""
        with broker_errors(self.settings):
            names = sorted(self.redis.scan_iter(f"{WORKER_PREFIX}*", count=1000))
            beats = self.redis.mget(names) if names else []
        return {
            name.removeprefix(WORKER_PREFIX): json.loads(beat)
            for name, beat in zip(names, beats, strict=True)
            if beat is not None
        }

    @property
    def _lease_ms(self) -> int:
        # Longer than a heartbeat, so that a dead worker is never taken for a living one that has let go.
        return int(2000 * self.settings.alive_for_s)

    def beat(self, worker: str, about: Mapping[str, Any], tokens: Iterable[str] = ()) -> None:
        """Say that a worker lives, and which attempts it has in hand: they are its own until its heartbeat ends, or it lets them go."""
        with broker_errors(self.settings), self.redis.pipeline() as pipe:
            pipe.set(f"{WORKER_PREFIX}{worker}", json.dumps(about), px=int(1000 * self.settings.alive_for_s))
            for token in tokens:
                pipe.set(f"{LEASE_PREFIX}{token}", worker, px=self._lease_ms)
            pipe.execute()

    def leave(self, worker: str) -> None:
        """Say that a worker has ended."""
        with broker_errors(self.settings):
            self.redis.delete(f"{WORKER_PREFIX}{worker}")


def _letters(letters: Sequence[DeadLetter], chunk: Chunk) -> str:
    prefix = f"{chunk.source}/"
    records = {}
    for letter in letters:
        record: dict[str, Any] = {"reason": letter.reason.value, "message": letter.message, "chunk": chunk.id}
        if columns := chunk.columns.get(letter.key.removeprefix(prefix)):
            record["columns"] = columns  # a replay has to write them
        records[letter.key] = json.dumps(record)
    return json.dumps(records)
