"""Pseudo-captions: the nearest captions, and the files they come from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuning_support import read_errors, write_archive

from mcip_qdrant.errors import TuningError
from mcip_qdrant.evaluation.datasets import read_table
from mcip_qdrant.tuning import captions, nearest, stored
from mcip_qdrant.tuning.batches import CaptionTable, Collate, distinct
from mcip_qdrant.tuning.caption_file import read_caption_file
from mcip_qdrant.tuning.captions import CaptionConfig, find_captions
from mcip_qdrant.tuning.encode import Encoding
from mcip_qdrant.tuning.nearest import nearest_captions
from mcip_qdrant.tuning.pictures import Sample
from mcip_qdrant.tuning.student import Source

TEXTS = [
    f"a {size} {thing} of kind {kind}" for size in ("small", "large") for thing in ("box", "ball") for kind in range(7)
]


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("top", [1, 5, 20, 40])
def test_nearest_are_those_of_brute_force_in_float64(top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_CAPTIONS_AT_ONCE", 9)
    rng = np.random.default_rng(top)
    images, texts = _unit(rng.normal(size=(11, 6))), _unit(rng.normal(size=(31, 6)))
    which, cosine = nearest_captions(images, texts, top=top, device=torch.device("cpu"))
    exact = images.astype(np.float64) @ texts.T.astype(np.float64)
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :top]
    assert (which == expected).all()
    np.testing.assert_allclose(cosine, np.take_along_axis(exact, expected, axis=1), atol=1e-6)


def test_among_equals_the_earlier_caption_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_CAPTIONS_AT_ONCE", 2)
    texts = np.array([[0, 1], [1, 0], [1, 0], [0, 1], [1, 0]], dtype=np.float32)
    which, _ = nearest_captions(np.array([[1, 0]], dtype=np.float32), texts, top=4, device=torch.device("cpu"))
    assert which.tolist() == [[1, 2, 4, 0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "one\n\n  two  \none\nthree"),
        ("c.csv", "url,caption\nu,one\nv,two\nw,\nx,one\ny,three\n"),
        ("c.jsonl", '{"caption": "one"}\n{"caption": "two"}\n{"caption": "one"}\n{"caption": "three"}\n'),
    ],
)
def test_caption_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_caption_file(tmp_path / name) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.txt", b"", "holds no caption"),
        ("c.txt", b" \n\n", "holds no caption"),
        ("c.csv", b"caption\n", "holds no caption"),
        ("c.csv", b"text\nx\n", "row 1 has no text in a column 'caption'"),
        ("c.jsonl", b'{"caption": 3}\n', "row 1 has no text"),
        ("c.jsonl", b"{", "line 1"),
        ("c.txt", b"\xff\xfe\xff", "decode"),
        ("gone.txt", None, "No such file"),
    ],
)
def test_unusable_caption_files_are_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TuningError, match=words) as caught:
        read_caption_file(path)
    assert str(path) in str(caught.value)


def _config(student_files: tuple[str, Path], table: Path, output: Path, **options: Any) -> CaptionConfig:
    file = output.parent / "captions.txt"
    file.write_text("\n".join(TEXTS))
    source = Source(*student_files)
    return CaptionConfig(source=source, data=table, caption_file=file, output=output, **options)


def test_the_table_holds_what_brute_force_finds(student_files: tuple[str, Path], table: Path, tmp_path: Path) -> None:
    import open_clip

    report = find_captions(_config(student_files, table, tmp_path / "found", threshold=-1.0))
    rows = [json.loads(line) for line in report.table.read_text().splitlines()]
    vectors = np.load(tmp_path / "found/image_vectors.npy")
    model, _, _ = open_clip.create_model_and_transforms(student_files[0])
    model.load_state_dict(torch.load(student_files[1], weights_only=True))
    with torch.inference_mode():
        texts = model.eval().encode_text(open_clip.get_tokenizer(student_files[0])(TEXTS), normalize=True).numpy()
    similarity = vectors.astype(np.float64) @ texts.T.astype(np.float64)
    images = read_table(table)
    for number, row in enumerate(rows):
        assert row["image"] == str(images.paths[number])
        assert row["class"] == images.names[images.labels[number]]
        assert len(row["captions"]) == len(row["cosines"]) == 20
        best = np.sort(similarity[number])[::-1][:20]
        np.testing.assert_allclose(row["cosines"], best, atol=2e-4)
        assert {TEXTS.index(text) for text in row["captions"][:3]} == set(np.argsort(-similarity[number])[:3].tolist())
    assert (report.images, report.captions, report.without) == (48, 960, 0)
    middle = float(np.median(similarity[0]))
    strict = find_captions(_config(student_files, table, tmp_path / "found", threshold=middle))
    kept = [json.loads(line) for line in strict.table.read_text().splitlines()]
    assert len(kept[0]["captions"]) == min(20, int((similarity[0] > middle).sum()))
    assert all(value > middle - 1e-4 for row in kept for value in row["cosines"])
    again = read_table(strict.table)  # the form that `tune mcip` reads
    assert again.paths == images.paths
    assert again.captions == [row["captions"] for row in kept]


def test_goes_on_after_a_kill(
    student_files: tuple[str, Path], table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CHUNK", 8)
    monkeypatch.setattr(captions, "_IMAGES_AT_ONCE", 16)
    whole = find_captions(_config(student_files, table, tmp_path / "whole", threshold=0.0)).table.read_bytes()
    config = _config(student_files, table, tmp_path / "cut", threshold=0.0)
    real_images, seen = Encoding.images, []

    def images(self: Encoding, paths: Sequence[Path], rows: Sequence[int]) -> Any:
        seen.append(list(rows))
        for number, batch in enumerate(real_images(self, paths, rows)):
            if len(seen) == 1 and number == 0:
                yield batch[:20]
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Encoding, "images", images)
    with pytest.raises(KeyboardInterrupt):
        find_captions(config)
    calls = []
    monkeypatch.setattr(captions, "nearest_captions", lambda *a, **k: (calls.append(1), nearest_captions(*a, **k))[1])
    assert find_captions(config).table.read_bytes() == whole
    assert seen[1] == list(range(16, 48))  # two chunks of eight were there
    (tmp_path / "cut/captions.jsonl").unlink()
    blocks = sorted((tmp_path / "cut/matched").rglob("*.json"))
    blocks[1].unlink()
    assert find_captions(config).table.read_bytes() == whole
    assert len(calls) == 3 + 1


def test_unreadable_images_have_no_captions_and_a_high_threshold_is_told(
    student_files: tuple[str, Path], tmp_path: Path
) -> None:
    table = write_archive(tmp_path)
    (tmp_path / "classes/kind-0/0.jpg").write_bytes(b"torn")
    report = find_captions(_config(student_files, table, tmp_path / "found", threshold=-1.0))
    assert (report.unreadable, report.without) == (1, 1)
    assert read_table(report.table).captions[0] == []  # type: ignore[index]
    report = find_captions(_config(student_files, table, tmp_path / "found", threshold=0.99))
    assert report.without == 48
    assert "choose --threshold by those figures" in report.notices[0]


def test_a_read_error_is_not_for_ever(student_files: tuple[str, Path], tmp_path: Path) -> None:
    table = write_archive(tmp_path)
    config = _config(student_files, table, tmp_path / "found", threshold=-1.0)
    files = sorted((tmp_path / "classes/kind-0").iterdir())
    with read_errors(files), pytest.raises(TuningError, match="6 of 48 images cannot be used, beyond --max-unreadable"):
        find_captions(config)
    with read_errors(files[:1]):
        assert find_captions(config).unreadable == 1
    assert find_captions(config).unreadable == 0
    rows = [json.loads(line) for line in (tmp_path / "found/captions.jsonl").read_text().splitlines()]
    assert all(len(row["captions"]) == 20 for row in rows)


def test_a_name_that_json_cannot_hold_costs_that_image_alone(student_files: tuple[str, Path], tmp_path: Path) -> None:
    write_archive(tmp_path)
    image = tmp_path / "classes/kind-3/2.jpg"
    image.rename(image.parent / os.fsdecode(b"caf\xe9.jpg"))
    report = find_captions(_config(student_files, tmp_path / "classes", tmp_path / "found", threshold=-1.0))
    (notice,) = report.notices
    assert "1 images whose names are not UTF-8" in notice
    assert "kind-3/caf%E9.jpg" in notice
    again = read_table(report.table)
    assert len(again) == report.images - 1 == 47
    assert all(len(own) == 20 for own in again.captions or [])


def test_captions_of_a_batch_are_one_column_each() -> None:
    texts, rows = distinct([["a", "b"], [], ["b", "c", "b"], ["d"]])
    assert texts == ["a", "b", "c", "d"]
    assert [own.tolist() for own in rows] == [[0, 1], [], [1, 2], [3]]
    table = CaptionTable(np.arange(8, dtype=np.float32).reshape(4, 2), rows)
    vectors, positives = table.of_batch(everywhere=[0, 1, 2], here=[2, 1])
    assert vectors.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert positives.tolist() == [[False, True, True], [False, False, False]]
    vectors, positives = table.of_batch([1], [1])
    assert vectors.shape == (0, 2)
    assert positives.shape == (1, 0)


def test_collate_keeps_samples_in_order() -> None:
    def tokenizer(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), 1] for text in texts])

    collate = Collate([["x", "yy"], ["zzz"]], tokenizer)
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    loaded = collate([Sample(1, pixels + 7, 0), Sample(0, pixels, 1)])
    assert loaded.indices.tolist() == [1, 0]
    assert loaded.pixels is not None
    assert loaded.pixels[:, 0, 0, 0].tolist() == [7, 0]
    assert loaded.token_ids is not None
    assert loaded.token_ids.tolist() == [[3, 1], [2, 1]]
    bare = collate([Sample(0, None, None)])
    assert bare.pixels is None
    assert bare.token_ids is None


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for options in ({"top": 0}, {"threshold": 2.0}, {"source": Source("m", None)}):
        with pytest.raises(TuningError):
            CaptionConfig(
                **{
                    "source": Source("m", tmp_path),
                    "data": tmp_path,
                    "caption_file": tmp_path,
                    "output": tmp_path,
                    **options,
                }
            )
