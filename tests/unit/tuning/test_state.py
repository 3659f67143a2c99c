"""Files that are whole or not there, and never run anything."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.state import STATE_FILE, State, copy_file, load_state, save_lines, save_tensors, save_text


def test_round_trip(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    saved = State({"--lr": 1e-6}, step=7, best=0.5, best_step=4, start=0.25, without_gain=2, history=[[4.0, 0.5]])
    saved.moving = {"w": torch.arange(4.0)}
    saved.optimizer = {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.98)}]}
    saved.unreadable, saved.replaced = {"a.jpg": "gone"}, 3
    saved.save(tmp_path)
    read = load_state(tmp_path)
    assert read is not None
    assert torch.equal(read.moving.pop("w"), saved.moving.pop("w"))
    assert read.optimizer["state"][0]["step"].item() == 7
    read.optimizer = saved.optimizer = {}
    assert read == saved
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("content", ["code", "noise", "empty", "other version", "foreign"])
def test_a_damaged_or_foreign_state_is_refused_and_runs_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / STATE_FILE
    if content == "code":
        torch.save({"format": 1, "x": Bomb(str(tmp_path / "ran"))}, path)
    elif content == "noise":
        path.write_bytes(bytes(range(7, 250)))
    elif content == "empty":
        path.touch()
    elif content == "other version":
        torch.save({"format": 99}, path)
    else:
        torch.save({"format": 1, "surprise": 1}, path)
    with pytest.raises(TuningError, match="--restart"):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_was_there_survives_an_interrupted_write(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    save_text("old", path)

    def lines() -> Iterator[str]:
        yield "new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_lines(lines(), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["lines"]


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.state import save_tensors, save_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
folder = Path(sys.argv[1])
for write, value in ((save_tensors, {"w": torch.zeros(100_000)}), (save_text, "x" * 100_000)):
    try:
        write(value, folder / "model.pth")
    except TuningError as exc:
        print(exc)
try:
    save_text("x", folder / "gone" / "report.json")
except TuningError as exc:
    print(exc)
"""


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    """A process whose files cannot grow stands for a full disk: torch.save meets it as it would meet a real one."""
    path = tmp_path / "model.pth"
    save_tensors({"w": torch.ones(3)}, path)
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    tensors, text, gone = done.stdout.splitlines()
    for said in (tensors, text):
        assert said.startswith(f"{path} cannot be written (File too large)")
        assert "what was there before stays" in said
    assert "No such file or directory" in gone
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.ones(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pth"]


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".report.json.abc").write_text("{")
    save_text("{}", tmp_path / "report.json")
    save_lines(iter(["a\n", "b\n"]), tmp_path / "lines")
    copy_file(tmp_path / "lines", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "a\nb\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "lines", "report.json"]
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0o044


def test_pickles_without_torch_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(pickle.dumps({"format": 1, "x": Bomb(str(tmp_path / "ran"))}, protocol=2))
    with pytest.raises(TuningError):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()
