"""The failures file is complete, parseable, and takes the old one's place only when the run has ended."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcip_qdrant.errors import Reason, SourceError
from mcip_qdrant.failures import FailureFile
from mcip_qdrant.report import DeadLetter


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_line_per_failure(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    with FailureFile(path) as failures:
        failures.write(DeadLetter("s/ä\n1.jpg", Reason.GONE, 'he said "gone"'))
        failures.write(DeadLetter("s/2.jpg", Reason.NOT_FINITE, ""))
    assert lines(path) == [
        {"key": "s/ä\n1.jpg", "reason": "gone", "message": 'he said "gone"'},
        {"key": "s/2.jpg", "reason": "not_finite", "message": ""},
    ]
    assert "ä" in path.read_text(encoding="utf-8")
    assert names(tmp_path) == ["failures.jsonl"]


@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, key: str, message: str) -> None:
    path = tmp_path_factory.mktemp("f") / "f.jsonl"
    with FailureFile(path) as failures:
        failures.write(DeadLetter(key, Reason.CORRUPT, message + "\udcff"))
    assert lines(path) == [{"key": key, "reason": "corrupt", "message": message + "\udcff"}]


def test_the_previous_run_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("old\n")
    with FailureFile(path) as failures:
        failures.write(DeadLetter("k", Reason.EMPTY, "m"))
        assert path.read_text() == "old\n"
        # On disk already, in case the process dies.
        (temporary,) = (entry for entry in tmp_path.iterdir() if entry != path)
        assert lines(temporary) == [{"key": "k", "reason": "empty", "message": "m"}]
    assert lines(path) == [{"key": "k", "reason": "empty", "message": "m"}]


def test_a_run_without_failures_leaves_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("old\n")
    with FailureFile(path):
        pass
    assert path.read_bytes() == b""


def test_a_run_that_breaks_leaves_what_it_knew(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    with pytest.raises(RuntimeError, match="broken"), FailureFile(path) as failures:  # noqa: PT012
        failures.write(DeadLetter("k", Reason.EMPTY, "m"))
        raise RuntimeError("broken")
    assert [line["key"] for line in lines(path)] == ["k"]
    assert names(tmp_path) == ["f.jsonl"]


def test_other_users_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with FailureFile(tmp_path / "f.jsonl"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f.jsonl").stat().st_mode) == 0o640


def test_a_relative_path_is_fixed_when_the_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with FailureFile(Path("f.jsonl")):
        pass
    assert names(tmp_path) == ["f.jsonl"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--failures FILE"):
        FailureFile(tmp_path / "none" / "f.jsonl")
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="--failures FILE"):
        FailureFile(tmp_path / "file" / "f.jsonl")


def test_nothing_but_a_file_is_ever_replaced(tmp_path: Path) -> None:
    # `--failures /dev/null` as root must not put a file in the place of the device.
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("folder", "pipe", "null"):
        with pytest.raises(SourceError, match="not a regular file"):
            FailureFile(tmp_path / name)
    assert names(tmp_path) == ["folder", "null", "pipe"]


def test_what_killed_runs_left_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "failures[1].jsonl"
    living = FailureFile(path)
    left = [tmp_path / f"{FailureFile.partial_prefix(path)}{name}" for name in ("old", "new")]
    others = [tmp_path / ".failures1.jsonl.partial-x", tmp_path / ".failures[1].jsonl"]
    for file in [*left, *others]:
        file.write_text("{}")
    for file in set(tmp_path.iterdir()) - {left[1]}:
        os.utime(file, (0, 0))
    with FailureFile(path) as failures:
        failures.write(DeadLetter("s/1.jpg", Reason.GONE, ""))
    assert not left[0].exists()
    assert left[1].exists(), "somebody may be about to lock it"
    assert all(file.exists() for file in others)
    with living:
        living.write(DeadLetter("s/2.jpg", Reason.GONE, ""))
    assert [line["key"] for line in lines(path)] == ["s/2.jpg"]
