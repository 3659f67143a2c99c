"""The small world's script: which commands it runs and what it skips."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import small_world as script

from mcip_qdrant.cli.tune import tune_group


def test_every_stage_is_a_command_that_exists_with_options_that_exist(tmp_path: Path) -> None:
    for stage in script.STAGES:
        group, name, *arguments = script.command_line(stage, 0, tmp_path)
        assert group == "tune"
        command = tune_group.commands[name]
        given = {word for word in arguments if word.startswith("--")}
        known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        assert given <= known, stage.name


def test_a_stage_starts_from_one_that_came_before() -> None:
    done: set[str | None] = {None}
    for stage in script.STAGES:
        assert stage.start in done
        done.add(stage.name)
    assert set(script.ROWS) <= done


def test_a_failed_stage_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        script.run_stage(script.STAGES[0], 0, tmp_path)
    assert not (tmp_path / "seed-0/base/seconds.json").exists()


def test_a_stage_is_skipped_only_if_its_command_and_its_files_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gpr,) = [stage for stage in script.STAGES if stage.name == "gpr"]
    base, folder = tmp_path / "seed-0/base/model.pth", tmp_path / "seed-0/gpr"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"weights")
    # The training itself is not what is looked at here.
    seen: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: seen.append(command))

    def runs(stage: script.Stage = gpr) -> list[str] | None:
        before = len(seen)
        script.run_stage(stage, 0, tmp_path)
        return seen[-1] if len(seen) > before else None

    first = runs()
    assert first is not None
    assert "--restart" not in first
    assert runs() is None
    (folder / "figures.json").write_text("{}")
    base.write_bytes(b"weights of a longer training")
    assert (runs() or [])[-1] == "--restart"
    assert not (folder / "figures.json").exists()
    assert runs() is None
    changed = replace(gpr, arguments=(*gpr.arguments, "--scale", 20))
    assert (runs(changed) or [])[-3:] == ["--scale", "20", "--restart"]
    # Stopped in mid-stage, the same command goes on.
    (folder / "seconds.json").unlink()
    assert (runs(changed) or [])[-1] == "20"
    # A folder of before commands were kept is done anew.
    (folder / "asked.json").unlink()
    assert (runs(changed) or [])[-1] == "--restart"


def test_a_result_of_other_commands_is_not_taken_for_todays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    assert not script.finished(0)
    (tmp_path / "seed-0.json").write_text(json.dumps({"commands": script.commands(0)}))
    assert script.finished(0)
    (tmp_path / "seed-0.json").write_text(json.dumps({"commands": []}))
    with pytest.raises(SystemExit, match="other commands"):
        script.finished(0)


def test_the_table_has_mean_lowest_and_highest() -> None:
    found = [
        {"figures": {row: dict.fromkeys(script.FIGURES, value) for row in script.ROWS}} for value in (0.5, 0.7, 0.9)
    ]
    lines = list(script.table(found))
    assert lines[2].startswith("| base | 0.700 (0.500–0.900) |")
    assert len(lines) == 2 + len(script.ROWS)
    assert all(line.count("|") == len(script.COLUMNS) + 2 for line in lines)


def test_without_results_the_page_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    with pytest.raises(SystemExit, match="no seed has run"):
        script.write_page()
