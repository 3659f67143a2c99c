"""Archives as they are: broken, hostile, odd, vanishing."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from cli_support import finish, letters, points, run, start
from conftest import Exported
from photos import write_archive
from PIL import Image


@pytest.fixture(autouse=True)
def _settings(clip: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BUNDLE", str(clip.folder))
    monkeypatch.setenv("MCIP_QDRANT_DEVICE", "cpu")


def _photo(path: Path | bytes, colour: str = "teal") -> None:
    with open(path, "wb") as stream:  # noqa: PTH123 - names that are not UTF-8
        Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB").save(stream, "JPEG")
        stream.write(colour.encode())  # after the end of the picture: another file, same pixels


def _bomb(path: Path, side: int = 50_000) -> None:
    """A valid one-bit PNG of `side` x `side`, written row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = bytes(side // 8 + 1) * 500
    data = b"".join(packer.compress(rows) for _ in range(side // 500)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def test_one_truncated_file_in_a_thousand(tmp_path: Path) -> None:
    names = write_archive(tmp_path / "photos", 1000, side=72)
    whole = names[500].read_bytes()
    names[500].write_bytes(whole[: len(whole) // 2])
    said = run("ingest", "photos", "--json", cwd=tmp_path, expect=3)
    counts = {name: said.json[name] for name in ("submitted", "embedded", "unchanged", "failed", "points")}
    assert counts == {"submitted": 1000, "embedded": 999, "unchanged": 0, "failed": 1, "points": 999}
    assert letters(tmp_path) == {"photos/photo-0500.jpg": "corrupt"}
    # Each run tries it again, and lists again what still fails.
    human = run("ingest", "photos", cwd=tmp_path, expect=3)
    assert "0 embedded (0 of them replaced), 999 unchanged, 1 failed; the collection holds 999 points" in human.out
    assert "failed images are listed in failures.jsonl" in human.out
    assert len(letters(tmp_path)) == 1
    names[500].write_bytes(whole)
    said = run("ingest", "photos", "--json", cwd=tmp_path).json
    assert (said["embedded"], said["unchanged"], said["failed"]) == (1, 999, 0)
    assert letters(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_only_broken_files_among_them_a_bomb(tmp_path: Path, clip: Exported) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    _bomb(photos / "bomb.png")
    assert (photos / "bomb.png").stat().st_size < 400_000
    (photos / "empty.jpg").touch()
    (photos / "page.jpg").write_text("<!doctype html><title>404</title>")
    (photos / "noise.webp").write_bytes(os.urandom(5000))
    _photo(photos / "big.jpg")
    with (photos / "big.jpg").open("ab") as stream:
        stream.truncate(2_000_000)
    # A process counts its parent's memory as its own peak, and pytest's is large: a small one stands between.
    flags = ("--bundle", clip.folder, "--json", "--max-bytes", "1000000")
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "mcip_qdrant", "ingest", "photos", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert int(done.stderr.split()[-1]) < 500_000  # KiB; the picture alone would be 2.5 GB
    said = json.loads(done.stdout)
    assert (said["embedded"], said["failed"], said["points"]) == (0, 5, 0)
    assert letters(tmp_path) == {
        "photos/bomb.png": "too_many_pixels",
        "photos/empty.jpg": "empty",
        "photos/page.jpg": "not_an_image",
        "photos/noise.webp": "not_an_image",
        "photos/big.jpg": "too_large",
    }


def test_nothing_to_ingest(tmp_path: Path) -> None:
    (tmp_path / "photos/sub").mkdir(parents=True)
    said = run("ingest", "photos", "--json", cwd=tmp_path, expect=1)
    assert said.err.count(f"no images below {tmp_path}/photos") == 1
    (tmp_path / "photos/sub/a.heic").touch()
    (tmp_path / "photos/README").touch()
    said = run("ingest", "photos", cwd=tmp_path, expect=1)
    assert "1 .heic" in said.err
    assert "--all-files" in said.err
    # A mistaken folder takes neither the source's name nor makes a collection.
    assert points(tmp_path / "qdrant") == {}
    _photo(tmp_path / "photos/README")
    said = run("ingest", "photos", "--all-files", "--json", cwd=tmp_path, expect=3).json
    assert (said["embedded"], said["failed"]) == (1, 1)


def test_odd_names_links_and_special_files(tmp_path: Path) -> None:
    photos, outside = tmp_path / "-odd", tmp_path / "outside"
    photos.mkdir()
    outside.mkdir()
    _photo(outside / "secret.jpg")
    raw = os.fsencode(photos)
    for number, name in enumerate(
        (b"new\nline.jpg", b"caf\xe9.jpg", b"100%.jpg", b"%E9.jpg", b"-dash.jpg", "größe 🚀.JPG".encode())
    ):
        _photo(raw + b"/" + name, str(number))
    os.mkfifo(photos / "pipe.jpg")
    (photos / "loop").symlink_to(".")
    (photos / "self.jpg").symlink_to("self.jpg")
    (photos / "out.jpg").symlink_to(outside / "secret.jpg")
    (photos / "in.jpg").symlink_to("-dash.jpg")
    (photos / "dangling.jpg").symlink_to("nowhere.jpg")
    (photos / "folder.jpg").mkdir()
    (photos / "._apple.jpg").touch()
    flags = ("--json", "--failures", "failures.jsonl")
    said = run("ingest", *flags, "--", "-odd", cwd=tmp_path, expect=3).json
    assert (said["embedded"], said["failed"]) == (7, 3)
    assert said["skipped"] == {"special file": 1, "symlinked folder": 1, "AppleDouble file": 1}
    assert letters(tmp_path) == {
        "-odd/self.jpg": "unreadable",
        "-odd/out.jpg": "outside_root",
        "-odd/dangling.jpg": "gone",
    }
    stored = points(tmp_path / "qdrant")
    assert set(stored) == {
        f"-odd/{name}"
        for name in ("new\nline.jpg", "caf%E9.jpg", "100%25.jpg", "%25E9.jpg", "-dash.jpg", "größe 🚀.JPG", "in.jpg")
    }
    assert stored["-odd/caf%E9.jpg"].payload["uri"] == f"file://{tmp_path}/-odd/caf%E9.jpg"
    run("ingest", *flags, "--", "-odd", cwd=tmp_path, expect=3)
    assert len(points(tmp_path / "qdrant")) == 7
    hit = run("search", "--like", "-odd/caf%E9.jpg", "--limit", 1, "--sheet", "hits.png", cwd=tmp_path)
    assert len(hit.out.splitlines()) == 1
    # A folder's name that is no name for a source.
    named = tmp_path / "new\nline"
    named.mkdir()
    _photo(named / "a.jpg")
    assert "--source NAME" in run("ingest", named, cwd=tmp_path, expect=1).err


def test_files_that_vanish_while_queued(tmp_path: Path) -> None:
    """The first look-up ends before the list does; then a file goes."""
    names = write_archive(tmp_path / "photos", 257, side=40)
    process = start("ingest", "photos", "--json", "--list", "-", cwd=tmp_path, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("".join(f"{name.name}\n" for name in names[:256]))
    process.stdin.flush()
    deadline = threading.Event()
    for _ in range(400):  # the collection is there, so the run has begun to look up
        if list((tmp_path / "qdrant").glob("collection/*")):
            break
        deadline.wait(0.05)
    names[3].unlink()
    names[200].unlink()
    said = finish(process, expect=3, typed=f"{names[256].name}\n").json
    assert (said["submitted"], said["embedded"], said["failed"]) == (257, 255, 2)
    assert letters(tmp_path) == {"photos/photo-0003.jpg": "gone", "photos/photo-0200.jpg": "gone"}
