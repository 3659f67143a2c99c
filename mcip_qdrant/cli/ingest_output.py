"""What `mcip-qdrant ingest` shows: progress and interruption on stderr, the result on stdout."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from mcip_qdrant.cli.options import on_one_line
from mcip_qdrant.cli.streams import echo_json

if TYPE_CHECKING:
    from mcip_qdrant.ingest import IngestResult
    from mcip_qdrant.report import RunReport
    from mcip_qdrant.source import ListingReport, Source


_STOPPING = "\nstopping after the batch in hand (again: at once) …\n".encode()


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C lets the batch in hand finish; the second one ends the process at once."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            signal.default_int_handler(number, None)
        stop.set()
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        with suppress(OSError):  # nobody there to be told
            os.write(2, _STOPPING)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class CountedTotal:
    """How many images a source has: counted by a thread while the run goes, None until it is done."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._total: int | None = None
        self._ended = threading.Event()

    def __enter__(self) -> CountedTotal:
        if self._source.complete:
            threading.Thread(target=self._count, daemon=True, name="count").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def __call__(self) -> int | None:
        return self._total

    def _count(self) -> None:
        from mcip_qdrant.source import ListingReport

        total = 0
        for _ in self._source(ListingReport()):
            total += 1
            if self._ended.is_set():
                return
        self._total = total


class ProgressBar:
    """A bar with images/s, time left and the share of each stage."""

    def __init__(self, source: Source) -> None:
        self._bar: Any = tqdm(unit="img", file=sys.stderr, dynamic_ncols=True, desc="ingest")
        self._total = CountedTotal(source)

    def __enter__(self) -> ProgressBar:
        self._total.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._total.__exit__()
        self._bar.refresh()
        self._bar.close()

    def __call__(self, report: RunReport) -> None:
        self._bar.total = self._total()
        shares = " ".join(f"{stage} {share:.0%}" for stage, share in report.shares().items())
        self._bar.set_postfix_str(f"failed {report.failed}, {shares}", refresh=False)
        self._bar.update(report.done - self._bar.n)


def print_result(result: IngestResult, failures_file: Path, as_json: bool) -> None:
    report, listing = result.report, result.listing
    if as_json:
        echo_json(
            {
                "run_id": result.run_id,
                "submitted": report.submitted,
                "embedded": report.embedded,
                "replaced": report.replaced,
                "unchanged": report.unchanged,
                "updated": report.updated,
                "failed": report.failed,
                "pruned": result.pruned,
                "prune_refused": result.prune_refused,
                "interrupted": report.interrupted,
                "points": result.points,
                "failures_file": str(failures_file),
                "listing_errors": listing.errors,
                "skipped": dict(listing.skipped),
                "stage_seconds": {stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
            }
        )
        return
    click.echo(
        f"{report.embedded} embedded ({report.replaced} of them replaced), {report.unchanged} unchanged"
        f"{f' ({report.updated} of them with new payload fields)' if report.updated else ''}, {report.failed} failed"
        f"{f', {result.pruned} pruned' if result.pruned else ''}; the collection holds {result.points} points"
    )
    say_listing(listing)
    if report.failed:
        click.echo(f"failed images are listed in {failures_file}")


def say_listing(listing: ListingReport) -> None:
    """What the listing left out."""
    for error in listing.errors:
        click.echo(f"not listed: {on_one_line(error)}", err=True)
    if listing.skipped:
        click.echo(
            "skipped, not images by name: "
            + ", ".join(f"{count} {on_one_line(kind)}" for kind, count in listing.skipped.most_common()),
            err=True,
        )
