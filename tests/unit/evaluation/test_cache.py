"""The cache gives back what was put, or nothing; damage and trouble cost time and never a wrong vector."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcip_qdrant.evaluation.cache import VectorCache, image_key, text_key

VECTORS = {bytes([number]) * 32: np.arange(4, dtype=np.float32) + number for number in range(5)}


def filled(path: Path) -> Path:
    cache = VectorCache(path, 4)
    cache.put(VECTORS)
    cache.close()
    return path


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    cache = VectorCache(filled(tmp_path / "deep" / "er" / "v.sqlite"), 4)
    found = cache.get([*VECTORS, b"unknown"])
    cache.close()
    assert set(found) == set(VECTORS)
    for key, vector in VECTORS.items():
        np.testing.assert_array_equal(found[key], vector)
        assert found[key].dtype == np.float32


def test_more_keys_than_one_statement_takes(tmp_path: Path) -> None:
    many = {number.to_bytes(32, "big"): np.full(4, number, dtype=np.float32) for number in range(1800)}
    cache = VectorCache(tmp_path / "v.sqlite", 4)
    cache.put(many)
    found = cache.get(list(many))
    cache.close()
    assert len(found) == 1800
    assert found[(1234).to_bytes(32, "big")][0] == 1234


def test_a_vector_of_another_width_is_none(tmp_path: Path) -> None:
    cache = VectorCache(filled(tmp_path / "v.sqlite"), 5)
    assert cache.get(list(VECTORS)) == {}
    cache.close()


def test_a_changed_row_is_no_row(tmp_path: Path) -> None:
    path = filled(tmp_path / "v.sqlite")
    first, second, third, *_ = VECTORS
    with sqlite3.connect(path) as database:
        database.execute("UPDATE vectors SET vector = zeroblob(16) WHERE key = ?", (first,))
        database.execute("UPDATE vectors SET vector = 'text' WHERE key = ?", (second,))
        database.execute("UPDATE vectors SET key = ? WHERE key = ?", (b"other", third))
    database.close()
    cache = VectorCache(path, 4)
    assert set(cache.get([*VECTORS, b"other"])) == set(list(VECTORS)[3:])
    cache.close()


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with caplog.at_level(logging.WARNING):
        assert VectorCache(filled(path), 4).get(list(VECTORS)).keys() == VECTORS.keys()
    assert "is damaged" in caplog.text
    assert (tmp_path / "v.sqlite.damaged").read_bytes().startswith(b"this is no")


def test_a_later_format_is_set_aside(tmp_path: Path) -> None:
    path = filled(tmp_path / "v.sqlite")
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    cache = VectorCache(path, 4)
    assert cache.get(list(VECTORS)) == {}
    cache.put(VECTORS)
    assert len(cache.get(list(VECTORS))) == 5
    cache.close()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_damage_never_gives_a_wrong_vector(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = filled(tmp_path_factory.mktemp("cache") / "v.sqlite")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 100]))])
    cache = VectorCache(path, 4)
    for key, vector in cache.get(list(VECTORS)).items():
        np.testing.assert_array_equal(vector, VECTORS[key])
    cache.put(VECTORS)
    cache.get(list(VECTORS))
    cache.close()


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        cache = VectorCache(tmp_path / "file" / "v.sqlite", 4)
    cache.put(VECTORS)
    assert cache.get(list(VECTORS)) == {}
    assert "going on without it" in caplog.text
    cache.close()


def test_a_full_disk_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path / "v.sqlite")
    cache = VectorCache(path, 4)
    assert cache._database is not None
    cache._database.execute("PRAGMA max_page_count = 1")  # what SQLite meets on a full disk
    with caplog.at_level(logging.WARNING):
        cache.put({number.to_bytes(32, "big"): np.zeros(4, dtype=np.float32) for number in range(2000)})
    assert "full" in caplog.text
    assert cache.get(list(VECTORS)) == {}
    again = VectorCache(path, 4)
    assert len(again.get(list(VECTORS))) == 5, "what was there before is still there, and half of the new rows is not"
    again.close()


def test_image_keys_tell_files_apart(tmp_path: Path) -> None:
    first = tmp_path / "a.jpg"
    first.write_bytes(b"1")
    key = image_key(first, "x")
    assert image_key(first, "x") == key
    assert image_key(first, "y") != key
    (tmp_path / "link.jpg").symlink_to(first)
    assert image_key(tmp_path / "link.jpg", "x") == key
    os.utime(first, ns=(0, 1))
    touched = image_key(first, "x")
    assert touched != key
    first.write_bytes(b"22")
    os.utime(first, ns=(0, 1))
    assert image_key(first, "x") not in {key, touched}
    with pytest.raises(OSError, match="gone"):
        image_key(tmp_path / "gone.jpg", "x")
    assert text_key("a", "x") != text_key("b", "x")
