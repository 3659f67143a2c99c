"""The contact sheet shows what was found, and says so where a file is gone."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from photos import photo_paths
from PIL import Image

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.hit import Hit
from mcip_qdrant.keys import file_uri
from mcip_qdrant.sheet import SHOWN, contact_sheet, save_sheet


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


def test_nothing_outside_the_source_is_drawn(tmp_path: Path) -> None:
    """A link that leads out of the archive is refused, as everywhere else."""
    (tmp_path / "outside.png").write_bytes(photo_paths()[0].read_bytes())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link.png").symlink_to("../outside.png")
    hit = Hit("1", 0.5, file_uri(str(tmp_path / "photos" / "link.png")), {"key": "photos/link.png"})
    empty = Hit("1", 0.5, file_uri(str(tmp_path / "photos" / "gone.png")), {"key": "photos/link.png"})
    drawn, blank = (len(contact_sheet("q", [one]).getcolors(1 << 20) or []) for one in (hit, empty))
    assert abs(drawn - blank) < 20, "both show a line of text"


def test_an_archive_that_lies_elsewhere_by_now(tmp_path: Path) -> None:
    shutil.copy(photo_paths()[0], tmp_path / "a.png")
    hit = Hit("1", 0.5, "file:///nonexistent/a.png", {"key": "s/a.png"})
    assert len(contact_sheet("q", [hit], roots={"s": tmp_path}).getcolors(1 << 20) or []) > 1000


def test_many_hits_take_the_memory_of_small_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (6000, 5000), (200, 30, 30)).save(tmp_path / "large.jpg")
    hits = [Hit(str(n), 0.5, file_uri(str(tmp_path / "large.jpg")), {"key": "s/large.jpg"}) for n in range(30)]
    program = (
        "import pickle, resource, sys; from mcip_qdrant.sheet import contact_sheet; "
        "hits = pickle.loads(sys.stdin.buffer.read()); contact_sheet('q', hits); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peak = [
        int(
            subprocess.run(
                [sys.executable, "-c", program], input=pickle.dumps(some), capture_output=True, check=True
            ).stdout
        )
        for some in (hits[:2], hits)
    ]
    assert peak[1] < peak[0] + 100, "one such picture takes 90 MB"


def test_at_most_so_many_are_drawn() -> None:
    hits = [Hit(str(n), 0.5, "", {"key": f"s/{n}"}) for n in range(SHOWN + 50)]
    assert contact_sheet("q", hits).size == contact_sheet("q", hits[:SHOWN]).size


def test_odd_titles_and_names_do_not_break_it() -> None:
    hit = Hit("1", 0.5, "", {"key": "s/" + "långt-naïve-名前\n" * 30})
    contact_sheet("a " * 500 + "🚀\x00", [hit], query=Image.new("RGB", (5, 700)))


def test_unwritable(tmp_path: Path) -> None:
    sheet = contact_sheet("q", [])
    with pytest.raises(InvalidQueryError, match="--sheet"):
        save_sheet(sheet, tmp_path / "no" / "such.png")
    with pytest.raises(InvalidQueryError, match="--sheet"):
        save_sheet(sheet, tmp_path / "sheet.nonsense")
