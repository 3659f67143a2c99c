"""Real `mcip-qdrant` processes for the integration tests, and a look into what they left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

NOBODY = 65534


@dataclass(frozen=True)
class Done:
    """A finished process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed for programs."""
        return json.loads(self.out)


def start(*arguments: object, cwd: Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start `mcip-qdrant …`; `env` adds to the environment. Arguments may be bytes, as file names may."""
    command = [sys.executable, "-m", "mcip_qdrant", *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "surrogateescape"}
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, **(env or {})}, **{**streams, **options})


def finish(process: subprocess.Popen[str], *, expect: int | None, typed: str | None = None) -> Done:
    """Wait for a process; its exit code is asserted, and that no traceback reached the user."""
    with process:
        out, err = process.communicate(typed, timeout=200)
    if expect is not None:
        assert process.returncode == expect, f"exit {process.returncode} instead of {expect}\n{out}\n{err}"
    assert "Traceback" not in (err or ""), err
    return Done(process.returncode, out or "", err or "")


def run(*arguments: object, cwd: Path, expect: int | None = 0, typed: str | None = None, **options: Any) -> Done:
    """Run `mcip-qdrant …` to its end."""
    if typed is not None:
        options["stdin"] = subprocess.PIPE
    return finish(start(*arguments, cwd=cwd, **options), expect=expect, typed=typed)


def run_all(commands: Iterable[Sequence[object]], *, cwd: Path, expect: int | None = 0, **options: Any) -> list[Done]:
    """Run several commands that do not touch each other's files, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arguments: run(*arguments, cwd=cwd, expect=expect, **options), commands))


def points(folder: Path, collection: str = "images") -> dict[str, models.Record]:
    """Every point of an embedded collection, by key (by id where it has none). One key twice fails."""
    client = QdrantClient(path=str(folder))
    try:
        if not client.collection_exists(collection):
            return {}
        records, rest = client.scroll(collection, limit=100_000, with_vectors=True)
    finally:
        client.close()
    assert rest is None
    found = {str((record.payload or {}).get("key", record.id)): record for record in records}
    assert len(found) == len(records)
    return found


def vectors(records: Iterable[models.Record]) -> np.ndarray[Any, Any]:
    """Their vectors, float32 `[N, D]`."""
    return np.asarray([record.vector for record in records], dtype=np.float32)


def letters(folder: Path) -> dict[str, str]:
    """key -> reason of `failures.jsonl`."""
    rows = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert all(sorted(row) == ["key", "message", "reason"] and row["message"] for row in rows)
    return {row["key"]: row["reason"] for row in rows}


SABOTAGE = """
import os, sys

WORD, COUNT, SIGNAL = os.environ["SABOTAGE"].split(":")
left = int(COUNT)

def strike():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(SIGNAL))

if WORD == "persist":
    import qdrant_client.local.persistence as persistence
    persist = persistence.CollectionPersistence.persist
    def sabotaged(self, point):
        persist(self, point)
        strike()
    persistence.CollectionPersistence.persist = sabotaged
else:
    def watch(event, arguments):
        if f"{event} {arguments[0]}".endswith(WORD) if event in {"open", "os.rename", "sqlite3.connect"} else False:
            strike()
    sys.addaudithook(watch)
"""


def sabotage(folder: Path, word: str, count: int, number: signal.Signals) -> dict[str, str]:
    """Environment in which a process signals itself at an exact moment.

    Args:
        word: `persist` (a point was written), or how `<audit event> <its first argument>` ends (`open …/meta.json.tmp`).
        count: the how-maniest such moment.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    return {"PYTHONPATH": str(folder), "SABOTAGE": f"{word}:{count}:{int(number)}"}
