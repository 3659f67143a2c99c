"""The small world's script: which commands it runs and what it skips."""

from __future__ import annotations

import subprocess
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


def test_a_finished_stage_is_not_run_again_and_a_failed_one_is(tmp_path: Path) -> None:
    stage = script.STAGES[0]
    with pytest.raises(subprocess.CalledProcessError):
        script.run_stage(stage, 0, tmp_path / "without data")
    folder = tmp_path / "seed-0" / stage.name
    folder.mkdir(parents=True)
    (folder / "seconds.json").write_text('{"clock": 3, "cpu": 2}')
    assert script.run_stage(stage, 0, tmp_path) == {"clock": 3, "cpu": 2}


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
