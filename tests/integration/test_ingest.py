"""`mcip-qdrant ingest` on an archive without faults: what is stored, and what later runs do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import points, run, run_all, vectors
from conftest import Exported
from photos import photo_paths, write_archive
from PIL import Image

from mcip_qdrant.keys import point_id


@pytest.fixture
def flags(clip: Exported, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A bundle by environment, results for programs, no words about the device."""
    monkeypatch.setenv("MCIP_QDRANT_BUNDLE", str(clip.folder))
    monkeypatch.setenv("MCIP_QDRANT_DEVICE", "cpu")
    return ("--json",)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 12 photographs to play with."""
    write_archive(tmp_path / "photos", 12)
    return tmp_path / "photos"


def _counts(said: Any) -> tuple[int, int, int, int]:
    return said["embedded"], said["replaced"], said["unchanged"], said["failed"]


def test_what_a_first_run_says_and_stores(library: Any) -> None:
    said = library.said.json
    assert {name: said[name] for name in ("submitted", "embedded", "replaced", "unchanged", "updated", "failed")} == {
        "submitted": 43, "embedded": 43, "replaced": 0, "unchanged": 0, "updated": 0, "failed": 0,
    }  # fmt: skip
    assert (said["points"], said["pruned"], said["prune_refused"], said["interrupted"]) == (43, 0, None, False)
    assert said["skipped"] == {".txt": 1}
    assert said["listing_errors"] == []
    assert set(said["stage_seconds"]) == {"read", "decode", "encode", "upsert"}
    assert all(seconds > 0 for seconds in said["stage_seconds"].values())
    assert "device auto: running on CPUExecutionProvider" in library.said.err
    assert re.search(r"img/s.*read \d+% decode \d+% encode \d+% upsert \d+%", library.said.err)
    assert "1 row(s) of" in library.said.err  # not-there.jpg is in the table only
    assert (library.folder.parent / "failures.jsonl").read_text() == ""
    assert library.qdrant.stat().st_mode & 0o777 == 0o700

    stored = points(library.qdrant)
    for key, record in stored.items():
        path = library.folder / key.removeprefix("photos/")
        with Image.open(path) as picture:
            width, height, kind = picture.width, picture.height, picture.format
        if path.name == "turned.jpg":
            width, height = 80, 120
        seconds, nanoseconds = divmod(path.stat().st_mtime_ns, 10**9)
        modified = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
        payload = dict(record.payload or {})
        assert record.id == point_id(key)
        assert datetime.now(UTC).timestamp() - datetime.fromisoformat(payload.pop("ingested_at")).timestamp() < 3600
        own = {"2019/deep/IMG_0001.jpg": {"year": 2019, "tag": "007"}, "photo-0000.jpg": {"tag": "x"}}
        assert payload == {
            "key": key,
            "source": "photos",
            "uri": f"file://{path}",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "width": width,
            "height": height,
            "format": kind,
            "bytes": path.stat().st_size,
            "modified_at": modified.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "run_id": said["run_id"],
            "decode": "exact",
            **own.get(key.removeprefix("photos/"), {}),
        }
    assert stored["photos/alpha.PNG"].payload["modified_at"] == "2009-02-13T23:31:30.123456Z"
    # The same file name in two folders: two points with their own vectors.
    twins = [stored[f"photos/{year}/deep/IMG_0001.jpg"] for year in (2019, 2020)]
    assert abs(float(np.subtract(*vectors(twins)).max())) > 1e-3
    np.testing.assert_allclose(np.linalg.norm(vectors(stored.values()), axis=1), 1, atol=1e-5)


def test_later_runs_do_only_what_changed(photos: Path, tmp_path: Path, flags: Any) -> None:
    first = run("ingest", "photos", *flags, cwd=tmp_path).json
    before = points(tmp_path / "qdrant")
    human = run("ingest", photos, cwd=tmp_path)  # another way to name the same folder
    assert human.out == "0 embedded (0 of them replaced), 12 unchanged, 0 failed; the collection holds 12 points\n"

    changed, touched = photos / "photo-0002.jpg", photos / "photo-0003.jpg"
    Image.open(photo_paths()[7]).convert("RGB").resize((90, 60)).save(changed)
    os.utime(touched, ns=(0, 10**18))
    (photos / "photo-0004.jpg").rename(photos / "new-name.jpg")
    # By checksum a touched file is unchanged …
    second = run("ingest", ".", *flags, "--checksum", "--qdrant", "../qdrant", cwd=photos).json
    assert _counts(second) == (2, 1, 10, 0)
    after = points(tmp_path / "qdrant")
    assert len(after) == 13  # the old name stays until --prune
    runs = {key: record.payload["run_id"] for key, record in after.items()}
    assert {key for key, run_id in runs.items() if run_id != first["run_id"]} == {
        "photos/photo-0002.jpg",
        "photos/new-name.jpg",
    }
    replaced = after["photos/photo-0002.jpg"]
    assert (replaced.payload["width"], replaced.payload["height"]) == (90, 60)
    assert replaced.payload["sha256"] == hashlib.sha256(changed.read_bytes()).hexdigest()
    assert float(np.dot(*vectors([replaced, before["photos/photo-0002.jpg"]]))) < 0.999
    assert after["photos/new-name.jpg"].vector == before["photos/photo-0004.jpg"].vector
    # … and its new time is remembered, so that a run without --checksum skips it as well.
    assert _counts(run("ingest", "photos", *flags, cwd=tmp_path).json) == (0, 0, 12, 0)
    assert points(tmp_path / "qdrant")["photos/photo-0003.jpg"].payload["modified_at"].startswith("2001-09-09")


def test_scaled_decoding_is_recorded(tmp_path: Path, flags: Any) -> None:
    (tmp_path / "photos").mkdir()
    large = Image.open(photo_paths()[0]).convert("RGB").resize((1600, 1200), Image.Resampling.LANCZOS)
    large.save(tmp_path / "photos/large.jpg", quality=92)
    run_all(
        [
            ("ingest", "photos", *flags, "--decode", how, "--qdrant", how, "--failures", f"{how}.jsonl")
            for how in ("exact", "scaled")
        ],
        cwd=tmp_path,
    )
    (exact,), (scaled,) = (points(tmp_path / how).values() for how in ("exact", "scaled"))
    assert (exact.payload["decode"], scaled.payload["decode"]) == ("exact", "scaled")
    for record in (exact, scaled):
        assert (record.payload["width"], record.payload["height"]) == (1600, 1200)
    cosine = float(np.dot(*vectors([exact, scaled])))
    assert cosine > 0.99
    assert exact.vector != scaled.vector  # it did something


def test_lists_instead_of_a_folder(photos: Path, tmp_path: Path, flags: Any) -> None:
    (photos / "with\nnewline.jpg").write_bytes((photos / "photo-0005.jpg").read_bytes())
    (tmp_path / "list.txt").write_text(
        f"photo-0000.jpg\n{photos}/photo-0001.jpg\r\n\nphoto-0000.jpg\n./x/../photo-0002.jpg"
    )
    said = run("ingest", photos, *flags, "--list", "list.txt", cwd=tmp_path).json
    assert (said["submitted"], said["embedded"], said["listing_errors"]) == (3, 3, [])

    typed = "photos/photo-0003.jpg\nphotos/photo-0000.jpg\n"
    said = run("ingest", "--list", "-", *flags, "--source", "photos", cwd=tmp_path, typed=typed, expect=1)
    assert "source 'photos'" in said.err  # the current directory is another root
    said = run("ingest", "--list", "-", *flags, "--source", "here", cwd=tmp_path, typed=typed).json
    assert (said["submitted"], said["embedded"], said["points"]) == (2, 2, 5)
    typed = "with\nnewline.jpg\0photo-0003.jpg\0gone.jpg\0../list.txt\0"
    said = run("ingest", "photos", *flags, "-0", "--list", "-", cwd=tmp_path, typed=typed, expect=3).json
    assert _counts(said) == (2, 0, 0, 1)
    assert [error.split(":")[0] for error in said["listing_errors"]] == ["../list.txt"]
    keys = ["here/photos/photo-0000.jpg", "here/photos/photo-0003.jpg"]
    keys += [f"photos/photo-000{number}.jpg" for number in range(4)] + ["photos/with\nnewline.jpg"]
    assert sorted(points(tmp_path / "qdrant")) == sorted(keys)
    # A name cannot forge lines of output.
    image = ("--image", photos / "photo-0005.jpg", "--limit", 1)
    assert run("search", *image, cwd=tmp_path).out.endswith("/photos/with\\nnewline.jpg\n")
    missing = run("ingest", "--list", "none.txt", cwd=tmp_path, expect=1)
    assert "--list none.txt: No such file" in missing.err


def test_own_columns(photos: Path, tmp_path: Path, flags: Any) -> None:
    run("ingest", "photos", *flags, cwd=tmp_path)
    (tmp_path / "a.jsonl").write_text(
        '{"key": "photos/photo-0000.jpg", "tags": ["red", "snow"], "place": {"lat": 1.5}}\n{"path": "photo-0001.jpg", "n": 3}\n'
    )
    said = run("ingest", "photos", *flags, "--columns", "a.jsonl", cwd=tmp_path)
    assert (said.json["embedded"], said.json["unchanged"], said.json["updated"]) == (0, 12, 2)
    assert "match no image" not in said.err
    stored = points(tmp_path / "qdrant")
    assert stored["photos/photo-0000.jpg"].payload["tags"] == ["red", "snow"]
    assert stored["photos/photo-0000.jpg"].payload["place"] == {"lat": 1.5}
    assert stored["photos/photo-0001.jpg"].payload["n"] == 3
    assert "n" not in stored["photos/photo-0002.jpg"].payload

    (tmp_path / "b.csv").write_text("path,n\nphoto-0001.jpg,4\nwrong-key.jpg,5\n")
    said = run("ingest", "photos", "--columns", "b.csv", cwd=tmp_path)
    assert "12 unchanged (1 of them with new payload fields)" in said.out
    assert "1 row(s) of b.csv match no image" in said.err
    assert points(tmp_path / "qdrant")["photos/photo-0001.jpg"].payload["n"] == 4
    # A changed picture keeps the fields that it was given.
    Image.new("RGB", (30, 30), "teal").save(photos / "photo-0000.jpg")
    run("ingest", "photos", *flags, cwd=tmp_path)
    assert points(tmp_path / "qdrant")["photos/photo-0000.jpg"].payload["tags"] == ["red", "snow"]
    (tmp_path / "c.csv").write_text("path,sha256\nphoto-0001.jpg,4\n")
    refused = run("ingest", "photos", "--columns", "c.csv", cwd=tmp_path, expect=1)
    assert "'sha256' is written by mcip-qdrant itself" in refused.err


def test_pruning_and_its_guards(photos: Path, tmp_path: Path, flags: Any) -> None:
    write_archive(tmp_path / "other", 3)
    run("ingest", "other", *flags, cwd=tmp_path)
    run("ingest", "photos", *flags, cwd=tmp_path)
    for number in (0, 1):
        (photos / f"photo-{number:04}.jpg").unlink()
    said = run("ingest", "photos", *flags, "--prune", cwd=tmp_path).json
    assert (said["pruned"], said["points"]) == (2, 13)

    for number in (2, 3, 4):
        (photos / f"photo-{number:04}.jpg").unlink()
    Image.new("RGB", (30, 30), "teal").save(photos / "late.jpg")
    refused = run("ingest", "photos", *flags, "--prune", cwd=tmp_path, expect=1)
    assert "nothing was pruned: 3 of the 11 images of source 'photos'" in refused.err
    assert "--prune --yes" in refused.err
    # What the run did besides is said and done.
    assert (refused.json["embedded"], refused.json["pruned"], refused.json["points"]) == (1, 0, 14)
    assert refused.json["prune_refused"] in refused.err
    human = run("ingest", "photos", "--prune", "--yes", cwd=tmp_path)
    assert "3 pruned; the collection holds 11 points" in human.out
    # An archive that is not mounted looks empty.
    shutil.rmtree(photos)
    photos.mkdir()
    assert "8 of the 8 images" in run("ingest", "photos", *flags, "--prune", cwd=tmp_path, expect=1).err
    assert len(points(tmp_path / "qdrant")) == 11
    said = run("ingest", "photos", *flags, "--prune", "--yes", cwd=tmp_path).json
    assert (said["pruned"], said["points"]) == (8, 3)
    assert all(key.startswith("other/") for key in points(tmp_path / "qdrant"))
    run("ingest", "photos", *flags, "--prune", "--list", "x", cwd=tmp_path, expect=2)


def test_sources(photos: Path, tmp_path: Path, flags: Any) -> None:
    write_archive(tmp_path / "elsewhere/photos", 6)
    first = run("ingest", "photos", *flags, cwd=tmp_path).json
    refused = run("ingest", "elsewhere/photos", *flags, cwd=tmp_path, expect=1)
    assert f"source 'photos' in collection 'images' already stands for {photos}" in refused.err
    assert "--moved" in refused.err
    assert "--source NAME" in refused.err
    assert len(points(tmp_path / "qdrant")) == 12
    # Another archive under its own name: same relative names, own points.
    said = run("ingest", "elsewhere/photos", *flags, "--source", "100 %", cwd=tmp_path).json
    assert (said["embedded"], said["points"]) == (6, 18)
    assert "100 %25/photo-0000.jpg" in points(tmp_path / "qdrant")

    photos.rename(tmp_path / "moved")
    said = run("ingest", "moved", *flags, "--source", "photos", "--moved", cwd=tmp_path).json
    assert (said["embedded"], said["unchanged"], said["points"]) == (0, 12, 18)
    for key, record in points(tmp_path / "qdrant").items():
        if key.startswith("photos/"):
            # Found again where it is now, without a new vector.
            assert record.payload["uri"] == f"file://{tmp_path}/moved/{key.removeprefix('photos/')}"
            assert record.payload["run_id"] == first["run_id"]
    assert run("ingest", "moved", *flags, "--source", "photos", cwd=tmp_path).json["updated"] == 0
    for name in ("a/b", "", ".."):
        assert "--source NAME" in run("ingest", "moved", "--source", name, cwd=tmp_path, expect=1).err


def test_settings_from_the_environment(photos: Path, tmp_path: Path, clip: Exported) -> None:
    env = {
        "MCIP_QDRANT_BUNDLE": str(clip.folder),
        "MCIP_QDRANT_URL": "store here",
        "MCIP_QDRANT_COLLECTION": "mine",
        "MCIP_QDRANT_DEVICE": "cpu",
    }
    said = run("ingest", "photos", cwd=tmp_path, env=env)
    assert "device auto" not in said.err
    assert len(points(tmp_path / "store here", "mine")) == 12
    assert not (tmp_path / "qdrant").exists()


def test_wrong_usage_says_so_at_once(tmp_path: Path, clip: Exported) -> None:
    bundle = ("--bundle", clip.folder)
    for arguments, words in (
        ((), "Missing option '--bundle'"),
        (bundle, "give a FOLDER"),
        ((*bundle, ".", "--decode", "fast"), "--decode"),
        ((*bundle, ".", "--index", "year"), "FIELD:TYPE"),
        ((*bundle, ".", "-0"), "--list"),
        ((*bundle, ".", "--batch-size", "0"), "--batch-size"),
        ((*bundle, ".", "--nonsense"), "--nonsense"),
    ):
        assert words in run("ingest", *arguments, cwd=tmp_path, expect=2).err
    assert "does not exist" in run("ingest", *bundle, "none", cwd=tmp_path, expect=1).err
    assert "is not a folder" in run("ingest", *bundle, clip.checkpoint, cwd=tmp_path, expect=1).err
    assert "http://" in run("ingest", *bundle, ".", "--qdrant", "redis://x", cwd=tmp_path, expect=4).err
    assert list(tmp_path.iterdir()) == []
    shown = json.dumps(run("--help", cwd=tmp_path).out)
    for word in ("export", "verify", "inspect", "ingest", "search", "adopt", "MCIP_QDRANT_BUNDLE", "130 interrupted"):
        assert word in shown
