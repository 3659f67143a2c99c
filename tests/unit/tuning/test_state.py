"""Files that are whole or not there, and never run anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning import state as module
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


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_survives_a_write_that_fails(
    tmp_path: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    save_tensors({"w": torch.ones(3)}, path)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(type(failure)):
        save_tensors({"w": torch.zeros(3)}, path)
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
