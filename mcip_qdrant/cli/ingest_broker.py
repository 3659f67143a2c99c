"""`mcip-qdrant ingest --broker`: the dispatcher's side of a distributed run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcip_qdrant.cli.ingest_output import CountedTotal, say_listing, stop_on_interrupt
from mcip_qdrant.cli.options import connect
from mcip_qdrant.cli.run_output import RunBar, print_run, write_failures
from mcip_qdrant.exit_codes import INTERRUPTED, SOME_FAILED
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.failures import FailureFile

if TYPE_CHECKING:
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.ingest import IngestOptions
    from mcip_qdrant.keys import ImageRef
    from mcip_qdrant.source import Source
    from mcip_qdrant.store import Store
    from mcip_qdrant.workers.records import RunInfo


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """The options of `ingest` that only `--broker` has."""

    broker: str
    chunk_size: int
    look_ahead: int
    detach: bool
    resume: str | None


def ingest_by_broker(
    source: Source,
    bundle: Bundle,
    location: str,
    options: IngestOptions,
    chosen: BrokerOptions,
    failures_file: Path,
    *,
    as_json: bool,
) -> int:
    """Create and check the collection, dispatch, and wait for the workers."""
    with needs_extra("workers", "ingest --broker"):
        from mcip_qdrant.workers.broker import broker_settings, make_celery
        from mcip_qdrant.workers.dispatch import Dispatcher, DispatchStoppedError, Watch, open_run, resume_run
        from mcip_qdrant.workers.ledger import Ledger
        from mcip_qdrant.workers.message import Chunk
        from mcip_qdrant.workers.queue import Queues
        from mcip_qdrant.workers.settings import visibility_timeout
    from mcip_qdrant.bulk import bulk_load
    from mcip_qdrant.errors import BrokerError, ConfigurationError
    from mcip_qdrant.ingest import new_run_id, references, timestamp
    from mcip_qdrant.source import ListingReport

    if "://" not in location:
        raise ConfigurationError(
            "--broker needs a Qdrant server: --qdrant http://HOST:6333 (embedded mode is for one process)"
        )
    settings = broker_settings(chosen.broker, visibility_timeout())
    ledger = Ledger(settings)
    listing = ListingReport()
    refs = references(source, listing, may_be_empty=not source.complete)
    sample = Chunk(
        run=chosen.resume or new_run_id(),
        collection=options.collection,
        space_id=bundle.manifest.space_id,
        source=source.name,
        images=("-",),
        ingested_at=timestamp(),
        decode=options.decode,
        checksum=options.checksum,
        max_bytes=options.limits.max_bytes,
        max_pixels=options.limits.max_pixels,
    )
    chunk_size = chosen.chunk_size
    if chosen.resume is not None:
        sample, chunk_size = resume_run(ledger, chosen.resume, sample)
    store: Store = connect(location)
    _open_collection(store, source, bundle, options, chosen.resume)
    with FailureFile(failures_file):
        pass  # that it cannot be written should be told now, and not after the run
    if chosen.resume is None:
        open_run(ledger, sample, bundle.manifest.model, str(source.root), chunk_size)
    if chosen.detach:
        return _detach(sample.run)
    click.echo(f"run {sample.run}", err=True)
    queues = Queues(make_celery(settings), settings, ledger.redis)
    columns: Callable[[ImageRef], Mapping[str, Any]] | None = options.columns
    total = CountedTotal(source)
    with stop_on_interrupt() as stop, total, RunBar(ledger, sample.run, total) as bar:
        dispatcher = Dispatcher(
            ledger, queues, sample.run, sample, Watch(bar, stop.is_set, bar.say_sent_again), chosen.look_ahead
        )
        try:
            with bulk_load(store, options.collection, defer=options.bulk):
                dispatcher.feed(refs, chunk_size, columns)
                dispatcher.wait()
            stopped = None
        except DispatchStoppedError as exc:
            stopped = str(exc) or _stopped(ledger.info(sample.run))
        except BrokerError as exc:
            raise BrokerError(f"{exc}. Nothing is lost; go on with: --resume {sample.run}") from exc
    say_listing(listing)
    write_failures(ledger, sample.run, failures_file)
    print_run(
        ledger, sample.run, as_json=as_json, more={"listing_errors": listing.errors, "skipped": dict(listing.skipped)}
    )
    if stopped is not None:
        click.echo(stopped, err=True)
        return INTERRUPTED
    return SOME_FAILED if ledger.counts(sample.run).failed or listing.errors else 0


def _open_collection(store: Store, source: Source, bundle: Bundle, options: IngestOptions, resume: str | None) -> None:
    from mcip_qdrant.collection import describe, ensure_collection, register_source
    from mcip_qdrant.errors import RunError

    if resume is not None and describe(store, options.collection) is None:
        raise RunError(
            f"--resume {resume}: its collection {options.collection!r} does not exist any more, nor what the run has embedded; "
            "start a new run instead"
        )
    ensure_collection(store, options.collection, bundle.manifest, options.indexes)
    register_source(store, options.collection, source.name, source.root, moved=options.source_moved)


def _stopped(info: RunInfo) -> str:
    if info.state == "dispatched":
        return f"everything is dispatched, and the workers go on: mcip-qdrant status {info.run} --wait"
    return f"stopped dispatching; workers finish what they got. Go on: --resume {info.run}"


def _detach(run: str) -> int:
    """Feed the run from a process of its own: the queue takes only some chunks ahead, so somebody has to stay."""
    log = Path(f"mcip-qdrant-{run}.log").absolute()
    arguments = _for_the_feeder(sys.argv[1:], run)
    with log.open("wb") as stream:
        feeder = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "mcip_qdrant", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    click.echo(f"process {feeder.pid} feeds the run; its log: {log}", err=True)
    click.echo(run)
    return 0


def _for_the_feeder(arguments: list[str], run: str) -> list[str]:
    """The same command line, for a process that stays and goes on with the run. Behind `--` nothing is an option."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [item for item in arguments[:end] if item != "--detach"]
    if not any(item == "--resume" or item.startswith("--resume=") for item in options):
        place = options.index("ingest") + 1
        options[place:place] = ["--resume", run]
    return [*options, *arguments[end:]]
