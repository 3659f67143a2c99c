"""Ctrl-C, SIGTERM and SIGKILL at exact and at random moments: the second run ends complete and repeats nothing that was written."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_support import Done, finish, points, run, sabotage, start
from conftest import Exported
from photos import write_archive

COUNT = 60
SMALL = ("--batch-size", 4, "--decode-threads", 2)


@pytest.fixture(autouse=True)
def _settings(clip: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BUNDLE", str(clip.folder))
    monkeypatch.setenv("MCIP_QDRANT_DEVICE", "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interruption") / "photos"
    write_archive(folder, COUNT, side=64)
    return folder


def _assert_second_run_completes(photos: Path, cwd: Path) -> int:
    """Returns how many points the interrupted run had written."""
    written = points(cwd / "qdrant") if (cwd / "qdrant").exists() else {}
    said = run("ingest", photos, "--json", cwd=cwd).json
    counts = {name: said[name] for name in ("submitted", "embedded", "unchanged", "failed", "points")}
    expected = {
        "submitted": COUNT,
        "embedded": COUNT - len(written),
        "unchanged": len(written),
        "failed": 0,
        "points": COUNT,
    }
    assert counts == expected
    after = points(cwd / "qdrant")
    assert set(after) == {f"photos/{path.name}" for path in photos.iterdir()}
    for key, record in written.items():
        assert after[key].payload == record.payload  # run_id and ingested_at included: not embedded again
    return len(written)


def _wait_for_collection(cwd: Path) -> None:
    deadline = time.monotonic() + 60
    while not list((cwd / "qdrant").glob("collection/*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


KILLED = {
    "first meta.json": ("open qdrant/meta.json", 1, {0}),
    "collection is recorded": ("meta.json.tmp", 1, {0}),
    "source is registered": ("meta.json.tmp", 2, {0}),
    "within a batch": ("persist", 30, {30}),
    "last point": ("persist", COUNT, {COUNT}),
}


def test_killed_at_exact_moments(photos: Path, tmp_path: Path) -> None:
    def kill_and_recover(moment: tuple[str, tuple[str, int, set[int]]]) -> tuple[str, int]:
        name, (ending, count, _) = moment
        cwd = tmp_path / name
        cwd.mkdir()
        env = sabotage(cwd / "site", ending, count, signal.SIGKILL)
        run("ingest", photos, *SMALL, cwd=cwd, env=env, expect=-signal.SIGKILL)
        return name, _assert_second_run_completes(photos, cwd)

    with ThreadPoolExecutor(2) as pool:
        found = dict(pool.map(kill_and_recover, KILLED.items()))
    assert all(found[name] in allowed for name, (*_, allowed) in KILLED.items()), found


def test_killed_at_random_moments(photos: Path, tmp_path: Path) -> None:
    moments = [random.Random(number).uniform(0, 0.8) for number in range(2)]

    def kill_and_recover(moment: float) -> None:
        cwd = tmp_path / f"{moment:.4f}"
        cwd.mkdir()
        process = start("ingest", photos, "--batch-size", 1, cwd=cwd)
        _wait_for_collection(cwd)
        time.sleep(moment)
        process.kill()
        finish(process, expect=None)
        _assert_second_run_completes(photos, cwd)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill_and_recover, moments))


INTERRUPTED = {
    "SIGINT while the store opens": (signal.SIGINT, "open qdrant/.lock", 1),
    "SIGINT within a batch": (signal.SIGINT, "persist", 30),
    "SIGTERM within a batch": (signal.SIGTERM, "persist", 30),
    "SIGTERM while the bundle is opened": (signal.SIGTERM, "/manifest.json", 1),
}


def test_interrupted_at_exact_moments(photos: Path, tmp_path: Path) -> None:
    def interrupt_and_recover(moment: tuple[str, tuple[signal.Signals, str, int]]) -> tuple[str, Done, int]:
        name, (number, ending, count) = moment
        cwd = tmp_path / name
        cwd.mkdir()
        env = sabotage(cwd / "site", ending, count, number)
        said = run("ingest", photos, *SMALL, "--json", cwd=cwd, env=env, expect=130)
        assert [path.name for path in cwd.iterdir() if path.name.startswith(".")] == []
        return name, said, _assert_second_run_completes(photos, cwd)

    with ThreadPoolExecutor(2) as pool:
        for name, said, written in pool.map(interrupt_and_recover, INTERRUPTED.items()):
            assert "interrupted" in said.err, name
            if "batch" in name:
                assert "stopping after the batch in hand" in said.err
                assert "run the same command again" in said.err
                # The batch in hand was finished, and the result says so.
                assert said.json["interrupted"] is True
                assert said.json["embedded"] == written
                assert 32 <= written < COUNT
                assert written % 4 == 0


def test_ctrl_c_from_outside(photos: Path, tmp_path: Path) -> None:
    """As a terminal sends it, at moments after the first words."""

    def interrupt(number: int) -> Any:
        cwd = tmp_path / str(number)
        cwd.mkdir()
        process = start("ingest", photos, "--batch-size", 1, "--device", "auto", cwd=cwd)
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "device auto" in first
        time.sleep(random.Random(number).uniform(0, 0.25))
        process.send_signal(signal.SIGINT)
        if number == 2:
            process.send_signal(signal.SIGINT)
        done = finish(process, expect=None)
        assert done.code in {0, 130}
        return done.code, _assert_second_run_completes(photos, cwd)

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(interrupt, range(3)))
    assert any(code == 130 for code, _ in ended), ended


def test_ctrl_c_inside_an_executed_string(tmp_path: Path) -> None:
    """Where libraries make classes from text while they are imported; Python would end by the signal whatever code it is given."""
    program = (
        "import sys, mcip_qdrant.cli.main as main\n"
        "main.cli.main = lambda **_: exec('raise KeyboardInterrupt')\n"
        "main.main()\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_two_processes_on_one_embedded_folder(photos: Path, tmp_path: Path) -> None:
    holder = start("ingest", photos, "--list", "-", "--json", cwd=tmp_path, stdin=-1)
    try:
        _wait_for_collection(tmp_path)
        for command in (("ingest", photos), ("search", "--text", "a"), ("adopt",)):
            refused = run(*command, cwd=tmp_path, expect=1)
            assert "the embedded Qdrant at ./qdrant is in use by another process" in refused.err
            assert "--qdrant http://HOST:6333" in refused.err
    finally:
        said = finish(holder, expect=0, typed="photo-0000.jpg\n")
    assert said.json["embedded"] == 1
    run("search", "--text", "a", cwd=tmp_path)
