"""Whether an archive is still the one of before, and when too much of it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcip_qdrant.errors import TuningError
from mcip_qdrant.tuning.files import check_present, check_readable, file_stamps, names_below, too_many


def test_names_are_those_below_the_archive_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a/1.jpg", "a/2.jpg", "b/c/3.jpg"]
    monkeypatch.chdir(tmp_path)
    assert names_below([tmp_path / name for name in names]) == names
    assert names_below([Path(name) for name in names]) == names
    assert names_below([Path("/elsewhere") / name for name in names]) == names
    assert names_below([tmp_path / "a/1.jpg"]) == ["1.jpg"]
    assert names_below([]) == []


def test_a_stamp_shows_a_file_that_was_replaced_or_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"1")
    (before,) = file_stamps([path])
    path.write_bytes(b"22")
    (after,) = file_stamps([path])
    assert after != before
    check_present([path], [after], 0.01)
    path.unlink()
    assert file_stamps([path]) == [""]
    with pytest.raises(TuningError, match=r"1 of 1 images cannot be used.*x\.jpg: no such file.*still mounted"):
        check_present([path], [""], 0.01)


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    [(8, 20, True), (2, 20, False), (10, 100, False), (11, 100, True), (10, 1000, False), (100, 10_000, False), (101, 10_000, True)],
)  # fmt: skip
def test_ten_are_tolerated_or_a_tenth_of_few_or_the_share_of_many(count: int, of: int, expected: bool) -> None:
    assert too_many(count, of, 0.01) is expected


def test_nothing_left_is_refused_whatever_the_share() -> None:
    with pytest.raises(TuningError, match="2 of 2 images"):
        check_readable({"a": "torn", "b": "torn"}, 2, 1.0, "images")
    check_readable({"a": "torn"}, 2, 1.0, "images")
    check_readable({}, 0, 0.0, "images")
