"""`status`, `retry` and `cancel` on a real ledger; the worker is a few lines that settle chunks."""

from __future__ import annotations

import threading
import time

import click
import pytest
from click.testing import CliRunner, Result
from worker_support import QUEUE, RUN, all_embedded, check_sums, chunk, letter, taken

from mcip_qdrant.cli import run_output
from mcip_qdrant.cli.ingest_broker import _for_the_feeder
from mcip_qdrant.cli.run_output import RunBar
from mcip_qdrant.cli.runs import cancel_command, retry_command, status_command
from mcip_qdrant.errors import RunError
from mcip_qdrant.workers.dispatch import open_run
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.queue import Queues
from mcip_qdrant.workers.records import Counts

pytestmark = pytest.mark.timeout(60)


def run(ledger: Ledger, command: click.Command, *arguments: str) -> Result:
    """What a command printed, and its exit code as `return_value`."""
    return CliRunner().invoke(command, [*arguments, "--broker", ledger.settings.url], standalone_mode=False)


@pytest.fixture
def half_done(ledger: Ledger) -> Ledger:
    """A run of two chunks: one settled, with a dead letter, and one whose message is nowhere."""
    open_run(ledger, chunk("-"), "Tiny-A", "/data/s")
    first, second = chunk("a.png", "b.png"), chunk("c.png")
    for one in (first, second):
        ledger.dispatch(one)
    ledger.begin(first, "w", "1")
    ledger.settle(first, Counts(2, embedded=1, failed=1), [letter("a.png")])
    return ledger


@pytest.mark.parametrize(
    ("state", "why"), [("cancelled", "was cancelled"), ("dispatching", "is not wholly dispatched")]
)
def test_a_run_that_has_to_be_resumed_is_not_replayed(half_done: Ledger, queues: Queues, state: str, why: str) -> None:
    half_done.set_state(RUN, state)  # type: ignore[arg-type]
    refused = run(half_done, retry_command, RUN)
    assert isinstance(refused.exception, RunError)
    assert f"{why}" in str(refused.exception)
    assert f"--resume {RUN}" in str(refused.exception)
    assert half_done.info(RUN).state == state
    assert check_sums(half_done) == Counts(3, 1, 0, 1)
    assert queues.length([QUEUE]) == 0
    said = run(half_done, status_command, RUN).output
    assert f"mcip-qdrant retry {RUN}" not in said
    assert (f"--resume {RUN}" in said) == (state == "cancelled")


def test_a_replay_waits_for_what_it_replays_and_for_nothing_else(half_done: Ledger) -> None:
    """The other chunk is still pending at its end, and was not sent by it."""
    half_done.all_dispatched(RUN)
    seen = []

    def work() -> None:
        deadline = time.monotonic() + 30
        while not seen and time.monotonic() < deadline:
            if (one := taken(half_done, QUEUE)) is not None:
                half_done.begin(one, "w", one.id)
                half_done.settle(one, all_embedded(one), [])
                seen.append(one)
            time.sleep(0.05)

    worker = threading.Thread(target=work)
    worker.start()
    done = run(half_done, retry_command, RUN)
    worker.join()
    assert done.return_value == 0, done.output
    assert [one.images for one in seen] == [("a.png",)]
    assert "1 image(s) replayed" in done.output
    assert check_sums(half_done) == Counts(3, 2)


def test_open_chunks_are_followed_through_splits(half_done: Ledger) -> None:
    whole = chunk("d", "e", "f")
    half_done.dispatch(whole)
    assert half_done.open_of(RUN, [whole.id, chunk("a.png", "b.png").id]) == {whole.id}
    half_done.begin(whole, "w", "2")
    rest = whole.of(["e", "f"])
    half_done.split(whole, whole.of(["d"]), Counts(1, 1), [], rest)
    assert half_done.open_of(RUN, [whole.id]) == {rest.id}
    half_done.settle(rest, all_embedded(rest), [])
    assert half_done.open_of(RUN, [whole.id]) == set()


def test_waiting_for_a_cancelled_run_is_no_success(half_done: Ledger) -> None:
    half_done.set_state(RUN, "cancelled")
    assert run(half_done, status_command, RUN, "--wait").return_value == 1
    assert run(half_done, status_command, RUN).return_value == 0
    half_done.all_dispatched(RUN)
    half_done.set_state(RUN, "dispatched")
    half_done.settle(chunk("c.png"), Counts(1, 1), [])
    assert run(half_done, status_command, RUN, "--wait").return_value == 3


def test_a_complete_run_is_not_cancelled(half_done: Ledger) -> None:
    assert "is cancelled" in run(half_done, cancel_command, RUN).output
    half_done.set_state(RUN, "dispatched")
    half_done.settle(chunk("c.png"), Counts(1, 1), [])
    assert "nothing to cancel" in run(half_done, cancel_command, RUN).output
    assert half_done.info(RUN).state == "dispatched"


def test_who_waits_hears_when_the_last_worker_has_gone(
    half_done: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after some images, and not only once; but not while one is there, however slow."""
    monkeypatch.setattr(run_output, "_SILENCE_S", 0.1)
    monkeypatch.setattr(run_output, "_SAY_AGAIN_S", 0.1)
    half_done.beat("w", {"space_id": chunk().space_id, "sources": [chunk().source]})
    half_done.redis.persist("mcip_qdrant:worker:w")
    with RunBar(half_done, RUN, lambda: None) as bar:

        def look(settled: int) -> int:
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                bar(Counts(9, settled))
                time.sleep(0.02)
            return capsys.readouterr().err.count("no worker is running for Tiny-A and source 's'")

        assert look(0) == look(3) == 0
        half_done.leave("w")
        assert look(4) > 1
        half_done.refuse({"run": RUN}, "message of format 2")
        bar.say_sent_again(1)
    said = capsys.readouterr().err
    assert "1 chunk(s) that no worker has were sent again" in said
    assert "workers refuse this run's messages: message of format 2" in said


@pytest.mark.parametrize(
    ("given", "fed"),
    [
        ("ingest --detach photos", "ingest --resume R photos"),
        ("ingest --chunk-size 5 --detach -- photos", "ingest --resume R --chunk-size 5 -- photos"),
        ("ingest --detach -- --detach", "ingest --resume R -- --detach"),
        ("--verbose ingest photos --detach", "--verbose ingest --resume R photos"),
        ("ingest photos --resume R --detach", "ingest photos --resume R"),
        ("ingest --resume=R --detach photos", "ingest --resume=R photos"),
        ("ingest --detach -- --resume", "ingest --resume R -- --resume"),
    ],
)
def test_the_command_line_of_a_detached_feeder(given: str, fed: str) -> None:
    assert _for_the_feeder(given.split(), "R") == fed.split()
