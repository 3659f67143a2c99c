"""The contact sheet shows what was found, and says so where a file is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from photos import photo_paths
from PIL import Image

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.hit import Hit
from mcip_qdrant.keys import file_uri
from mcip_qdrant.sheet import contact_sheet, save_sheet


def _hits(count: int) -> list[Hit]:
    return [
        Hit(str(index), 1 - index / 10, file_uri(str(path)), {"key": f"s/{path.name}"})
        for index, path in enumerate(photo_paths()[:count])
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 18])
def test_size_grows_with_the_hits(count: int) -> None:
    sheet = contact_sheet("text: a cat", _hits(count))
    assert sheet.mode == "RGB"
    assert sheet.height >= 200
    assert len(sheet.resize((32, 32)).getcolors(1024) or []) > (1 if count == 0 else 20)


def test_a_missing_file_is_an_empty_tile(tmp_path: Path) -> None:
    gone = Hit("1", 0.5, file_uri(str(tmp_path / "gone.jpg")), {"key": "s/gone.jpg"})
    elsewhere = Hit("2", 0.4, "s3://bucket/key.jpg", {"key": "s/key.jpg"})
    assert contact_sheet("q", [gone, elsewhere]).size == contact_sheet("q", _hits(2)).size


def test_odd_titles_and_names_do_not_break_it() -> None:
    hit = Hit("1", 0.5, "", {"key": "s/" + "långt-naïve-名前\n" * 30})
    contact_sheet("a " * 500 + "🚀\x00", [hit], query=Image.new("RGB", (5, 700)))


def test_unwritable(tmp_path: Path) -> None:
    sheet = contact_sheet("q", [])
    with pytest.raises(InvalidQueryError, match="--sheet"):
        save_sheet(sheet, tmp_path / "no" / "such.png")
    with pytest.raises(InvalidQueryError, match="--sheet"):
        save_sheet(sheet, tmp_path / "sheet.nonsense")
