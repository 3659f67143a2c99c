"""Dispatching very many references takes no more memory than dispatching a few, and Redis holds a bounded number of chunks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Exported
from service_fixtures import start_redis

from mcip_qdrant.workers.ledger import MAX_OUTBOX

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "dispatch_memory.py"


@pytest.mark.parametrize(
    "references", [200_000, pytest.param(1_000_000, marks=pytest.mark.chaos)], ids=lambda number: f"{number:,}"
)
def test_memory_is_flat(clip: Exported, tmp_path: Path, references: int) -> None:
    start_redis(tmp_path / "there-is-one").stop()
    command = [sys.executable, SCRIPT, "--bundle", clip.folder, "--references", "10000", str(references), "--json"]
    done = subprocess.run([*command, "--work", tmp_path], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["ratio"] <= 1.1
    for run in found["runs"]:
        assert 1 < run["longest_queue"] <= found["look_ahead"] + 1
        # An entry for each chunk, the queue, and the kept messages of 8 kB.
        assert run["ledger_mb"] < 4 + run["references"] / 256 * 250e-6 + MAX_OUTBOX * 8e-3
