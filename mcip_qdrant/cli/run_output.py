"""What the commands about distributed runs show: a bar fed by the ledger on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from mcip_qdrant.cli.options import on_one_line
from mcip_qdrant.failures import FailureFile

if TYPE_CHECKING:
    from mcip_qdrant.workers.ledger import Ledger
    from mcip_qdrant.workers.records import Counts, RunInfo

_SILENCE_S = 5.0
_SAY_AGAIN_S = 60.0


class RunBar:
    """Embedded, unchanged, failed, images/s and time left of a whole run, whoever does the work."""

    def __init__(self, ledger: Ledger, run: str, total: Callable[[], int | None]) -> None:
        self._ledger, self._run, self._total = ledger, run, total
        self._bar: Any = tqdm(unit="img", file=sys.stderr, dynamic_ncols=True, desc="ingest")
        self._before: Counts | None = None
        self._warn_at = 0.0

    def __enter__(self) -> RunBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.refresh()
        self._bar.close()

    def __call__(self, counts: Counts) -> None:
        if self._before is None:
            # What earlier sittings did must not count as this one's speed.
            self._bar.initial = self._bar.n = self._bar.last_print_n = counts.settled
        self._bar.total = self._total() or counts.submitted
        self._bar.set_postfix_str(
            f"embedded {counts.embedded}, unchanged {counts.unchanged}, failed {counts.failed}", refresh=False
        )
        self._bar.update(counts.settled - self._bar.n)
        if self._before is None or counts.settled != self._before.settled:
            self._warn_at = time.monotonic() + _SILENCE_S
        elif time.monotonic() > self._warn_at:
            self._warn_at = time.monotonic() + _SAY_AGAIN_S
            self._say_who_is_missing()
        self._before = counts

    def say_sent_again(self, chunks: int) -> None:
        """Tell that chunks got lost between queue and worker."""
        self._bar.write(f"nothing moved: {chunks} chunk(s) that no worker has were sent again", file=sys.stderr)
        self._say_who_refuses()

    def _say_who_refuses(self) -> None:
        if why := self._ledger.why_refused(self._run):
            self._bar.write(f"workers refuse this run's messages: {why}", file=sys.stderr)

    def _say_who_is_missing(self) -> None:
        from mcip_qdrant.workers.records import sample_of

        self._say_who_refuses()
        info = self._ledger.info(self._run)
        sample = sample_of(info)
        able = [
            worker
            for worker in self._ledger.workers().values()
            if worker["space_id"] == sample.space_id and sample.source in worker["sources"]
        ]
        if not able:
            self._bar.write(
                f"no worker is running for {info.model} and source {sample.source!r}; start one: "
                f"mcip-qdrant worker --source-root {on_one_line(sample.source)}={on_one_line(info.root)} …",
                file=sys.stderr,
            )


def run_as_json(info: RunInfo, counts: Counts) -> dict[str, Any]:
    """A run for programs."""
    return {
        "run_id": info.run,
        "state": info.state,
        "model": info.model,
        "collection": info.sample["collection"],
        "source": info.sample["source"],
        "started_at": info.started_at,
        "last_at": info.last_at,
        "submitted": counts.submitted,
        "embedded": counts.embedded,
        "unchanged": counts.unchanged,
        "failed": counts.failed,
        "pending": counts.submitted - counts.settled,
        "complete": is_complete(info, counts),
    }


def is_complete(info: RunInfo, counts: Counts) -> bool:
    """Everything was dispatched, and every image has met its fate."""
    return info.state == "dispatched" and counts.settled >= counts.submitted


def print_run(ledger: Ledger, run: str, *, as_json: bool, more: dict[str, Any] | None = None) -> None:
    """One run, on stdout."""
    info, counts = ledger.info(run), ledger.counts(run)
    if as_json:
        click.echo(json.dumps(run_as_json(info, counts) | (more or {}), ensure_ascii=False, indent=2))
        return
    left = counts.submitted - counts.settled
    click.echo(
        f"run {run}: {counts.submitted} submitted = {counts.embedded} embedded + {counts.unchanged} unchanged + "
        f"{counts.failed} failed{f' + {left} pending' if left else ''}"
    )
    state = "complete" if is_complete(info, counts) else info.state
    click.echo(
        f"{state}; {info.model}, source {on_one_line(info.sample['source'])}, collection {info.sample['collection']}"
    )
    if info.state == "cancelled":
        click.echo(f"go on with it: mcip-qdrant ingest … --resume {run}")
    if counts.failed:
        again = f"; try it again: mcip-qdrant retry {run}" if info.state == "dispatched" else ""
        click.echo(f"list what failed: mcip-qdrant failures {run}{again}")


def write_failures(ledger: Ledger, run: str, path: Path) -> None:
    """The run's dead letters into a file, as an in-process ingest leaves them."""
    with FailureFile(path) as failures:
        for item in ledger.failures(run):
            failures.write(item.letter)
