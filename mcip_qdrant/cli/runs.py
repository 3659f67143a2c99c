"""`mcip-qdrant status`, `failures`, `retry` and `cancel`: distributed runs seen from outside."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mcip_qdrant.cli.ingest_output import stop_on_interrupt
from mcip_qdrant.cli.options import broker_option, json_option, on_one_line
from mcip_qdrant.cli.run_output import RunBar, is_complete, print_run, run_as_json
from mcip_qdrant.exit_codes import INTERRUPTED, SOME_FAILED
from mcip_qdrant.extras import needs_extra

if TYPE_CHECKING:
    from mcip_qdrant.workers.ledger import Ledger

EXIT_NOT_ALL_IN = 1


def _ledger(broker: str) -> Ledger:
    with needs_extra("workers", "a distributed run"):
        from mcip_qdrant.workers.broker import broker_settings
        from mcip_qdrant.workers.ledger import Ledger
        from mcip_qdrant.workers.settings import visibility_timeout

        return Ledger(broker_settings(broker, visibility_timeout()))


@click.command("status")
@click.argument("run", required=False)
@broker_option(required=True)
@click.option(
    "--wait",
    is_flag=True,
    help="Show progress until the run is complete; exit 3 if images failed, 1 if it was cancelled.",
)
@json_option
def status_command(run: str | None, broker: str, wait: bool, as_json: bool) -> int:
    """What became of a run, or which runs and workers there are.

    \b
    Examples:
      mcip-qdrant status
      mcip-qdrant status 20261121T090000Z-1a2b3c4d --wait
    """
    ledger = _ledger(broker)
    if run is None:
        if wait:
            raise click.UsageError("--wait needs a RUN")
        _print_all(ledger, as_json)
        return 0
    ledger.info(run)
    if wait and not _wait(ledger, run):
        return INTERRUPTED
    print_run(ledger, run, as_json=as_json)
    counts = ledger.counts(run)
    if wait and not is_complete(ledger.info(run), counts):
        return EXIT_NOT_ALL_IN
    return SOME_FAILED if wait and counts.failed else 0


def _wait(ledger: Ledger, run: str) -> bool:
    with stop_on_interrupt() as stop, RunBar(ledger, run, lambda: None) as bar:
        while not stop.is_set():
            info, counts = ledger.info(run), ledger.counts(run)
            bar(counts)
            if is_complete(info, counts) or info.state == "cancelled":
                return True
            time.sleep(0.5)
    return False


def _print_all(ledger: Ledger, as_json: bool) -> None:
    from mcip_qdrant.errors import RunError

    runs = []
    for run in ledger.runs():
        try:
            runs.append((ledger.info(run), ledger.counts(run)))
        except RunError:
            continue
    workers, refused = ledger.workers(), ledger.refused()
    if as_json:
        found = {
            "runs": [run_as_json(info, counts) for info, counts in runs],
            "workers": workers,
            "refused_messages": refused,
        }
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for info, counts in runs:
        started = datetime.fromtimestamp(info.started_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        state = "complete" if is_complete(info, counts) else info.state
        click.echo(
            f"{info.run}  {state:<11}  {started}  {counts.settled} of {counts.submitted} images, {counts.failed} failed  "
            f"{on_one_line(info.sample['source'])} -> {info.sample['collection']}"
        )
    if not runs:
        click.echo("no runs in the last 30 days")
    for name, worker in workers.items():
        click.echo(f"worker {name}: {worker['model']} on {worker['provider']}, sources {', '.join(worker['sources'])}")
    if not workers:
        click.echo("no workers")
    if refused:
        click.echo(f"{len(refused)} message(s) refused, the latest: {refused[0]['why']}")


@click.command("failures")
@click.argument("run")
@broker_option(required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: key, reason, message.")
def failures_command(run: str, broker: str, as_json: bool) -> int:
    """List the images of a run that failed, and why.

    Exit code 3 if there are any, 0 if not.
    """
    ledger = _ledger(broker)
    ledger.info(run)
    found = False
    for item in ledger.failures(run):
        found, letter = True, item.letter
        if as_json:
            line = {"key": letter.key, "reason": letter.reason.value, "message": letter.message}
            click.echo(json.dumps(line, ensure_ascii=False))
        else:
            click.echo(f"{on_one_line(letter.key)}\t{letter.reason.value}\t{on_one_line(letter.message)}")
    return SOME_FAILED if found else 0


@click.command("retry")
@click.argument("run")
@broker_option(required=True)
@click.option("--chunk-size", type=click.IntRange(1, 4096), default=256, show_default=True, help="Images per task.")
@click.option("--detach", is_flag=True, help="Do not wait for the outcome.")
@json_option
def retry_command(run: str, broker: str, chunk_size: int, detach: bool, as_json: bool) -> int:
    """Replay the dead letters of a run, and nothing else.

    A run that was cancelled or is not wholly dispatched has to be taken up first: `ingest --resume RUN`. Exit codes as `ingest`: 0 all
    in, 3 some failed again.
    """
    ledger = _ledger(broker)
    from mcip_qdrant.errors import RunError
    from mcip_qdrant.workers.broker import make_celery
    from mcip_qdrant.workers.dispatch import Dispatcher, DispatchStoppedError, Watch
    from mcip_qdrant.workers.queue import Queues
    from mcip_qdrant.workers.records import sample_of

    info = ledger.info(run)
    if info.state != "dispatched":
        how = "was cancelled" if info.state == "cancelled" else "is not wholly dispatched yet"
        raise RunError(f"run {run} {how}; go on with it first: mcip-qdrant ingest … --resume {run}")
    queues = Queues(make_celery(ledger.settings), ledger.settings, ledger.redis)
    with stop_on_interrupt() as stop, RunBar(ledger, run, lambda: None) as bar:
        dispatcher = Dispatcher(ledger, queues, run, sample_of(info), Watch(bar, stop.is_set, bar.say_sent_again))
        try:
            replayed = dispatcher.replay(chunk_size)
            if replayed and not detach:
                dispatcher.wait()
        except DispatchStoppedError as exc:
            click.echo(str(exc) or "interrupted; what was dispatched goes on", err=True)
            return INTERRUPTED
    print_run(ledger, run, as_json=as_json, more={"replayed": replayed})
    if not as_json:
        click.echo(f"{replayed} image(s) replayed")
    return SOME_FAILED if not detach and ledger.counts(run).failed else 0


@click.command("cancel")
@click.argument("run")
@broker_option(required=True)
def cancel_command(run: str, broker: str) -> int:
    """Stop a run: chunks in hand are finished, waiting ones dropped. `ingest --resume RUN` takes it up again."""
    ledger = _ledger(broker)
    if is_complete(ledger.info(run), ledger.counts(run)):
        click.echo(f"run {run} is complete; there is nothing to cancel")
        return 0
    ledger.set_state(run, "cancelled")
    click.echo(f"run {run} is cancelled; points already written stay")
    return 0
