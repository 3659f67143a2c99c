"""The two general layouts, read as they are and refused with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.datasets import NO_CLASS, LabelledImages, read_folder, read_images, read_table
from mcip_qdrant.evaluation.layouts import read_instre
from mcip_qdrant.evaluation.prompts import read_class_names


def touch(root: Path, *names: str | bytes) -> None:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def relative(found: LabelledImages, root: Path) -> list[tuple[str, str]]:
    return [
        (os.fsencode(path.relative_to(root)).decode(errors="replace"), found.names[label] if label >= 0 else "-")
        for path, label in zip(found.paths, found.labels, strict=True)
    ]


def test_folder_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/1.PNG", "a/deep/x.jpg", "a/y.webp", "a/notes.txt", "README.md", ".git/z.jpg")
    (tmp_path / "empty").mkdir()
    found = read_folder(tmp_path)
    assert relative(found, tmp_path) == [("a/y.webp", "a"), ("a/deep/x.jpg", "a"), ("b/1.PNG", "b"), ("b/2.jpg", "b")]
    assert found.names == ["a", "b", "empty"]
    assert found.counts().tolist() == [2, 2, 0]
    assert found.captions is None
    assert sorted(found.notices) == [
        ".git: hidden, left out",
        "README.md: not in a class folder, left out",
        "class a: 1 files left out (.txt)",
        "class empty is empty",
    ]


def test_a_class_is_called_what_its_folder_is_called(tmp_path: Path) -> None:
    """A percent sign is no code: a table, a prompt and a file of class names have the same name for it."""
    folder = tmp_path / "data" / "50% wool"
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.jpg", "class": "50% wool"}))
    (tmp_path / "names.json").write_text(json.dumps({"50% wool": "half of it wool"}))
    names = read_folder(tmp_path / "data").names
    assert names == read_table(tmp_path / "t.jsonl").names == read_instre(tmp_path / "data").names == ["50% wool"]
    assert read_class_names(tmp_path / "names.json", names) == ["half of it wool"]


def test_two_folders_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "caf%E9").mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(SourceError, match="two folders for the class caf%E9"):
        read_folder(tmp_path)


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    touch(tmp_path, b"caf\xe9/na\xefve.jpg")
    found = read_folder(tmp_path)
    assert found.names == ["caf%E9"]
    assert found.paths[0].exists()


def test_a_class_folder_may_be_a_symlink(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "loop").symlink_to(tmp_path / "root")
    found = read_folder(tmp_path / "root")
    assert len(found) == 1
    assert found.notices == ("class cat: 1 files left out (symlinked folder)",)


def test_folder_refusals(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match="no class folders"):
        read_folder(tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        read_folder(tmp_path / "gone")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed_is_no_hole(tmp_path: Path) -> None:
    touch(tmp_path, "a/deep/1.jpg")
    (tmp_path / "a" / "deep").chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        read_folder(tmp_path)


def test_csv(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        'image,class,captions\nx/1.jpg,007,a cat|the cat \n/abs/2.jpg,1e5,"[""a, dog"", ""dog""]"\n3.jpg,,\nx/1.jpg,007,again\n'
    )
    found = read_table(table)
    assert found.paths == [tmp_path / "x/1.jpg", Path("/abs/2.jpg"), tmp_path / "3.jpg"]
    assert found.names == ["007", "1e5"]
    assert found.labels.tolist() == [0, 1, NO_CLASS]
    assert found.captions == [["a cat", "the cat", "again"], ["a, dog", "dog"], []]


def test_jsonl(tmp_path: Path) -> None:
    rows = [
        {"image": "1.jpg", "class": 7, "captions": ["a | b", " ", "c"]},
        {"image": "2.jpg", "caption": "[d"},
        {"image": "3.jpg", "class": None, "captions": None},
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    found = read_images(table)
    assert found.names == ["7"]
    assert found.labels.tolist() == [0, NO_CLASS, NO_CLASS]
    assert found.captions == [["a | b", "c"], ["[d"], []]
    assert found.notices == ("row 1: 1 empty captions left out",)


def test_table_without_captions_has_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,class\n1.jpg,a\n")
    assert read_table(tmp_path / "t.csv").captions is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,class\n1.jpg,a\n1.jpg,b\n", "row 2: 1.jpg was in class 'a' before, here in 'b'"),
        ("t.csv", "file,class\n1.jpg,a\n", "row 1 has no 'image'"),
        ("t.csv", "image,class\n1.jpg\n", "row 1 does not have 2 cells"),
        ("t.csv", 'image,captions\n1.jpg,"[""a"""\n', "not a JSON list"),
        ("t.csv", "image,captions\n", "has no rows"),
        ("t.jsonl", '{"image": "1.jpg", "captions": 3}\n', "row 1: captions must be text"),
        ("t.jsonl", '{"image": ["1.jpg"]}\n', "row 1 has no 'image'"),
        ("t.jsonl", "{\n", "line 1 is not JSON"),
        ("t.tsv", "image\n", "expected a .csv or .jsonl"),
        (".csv/", "", "does not exist"),
    ],
)
def test_table_refusals(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    if not name.endswith("/"):
        path.write_text(text)
    with pytest.raises(SourceError, match=message):
        read_table(path)
    with pytest.raises(SourceError, match="does not exist"):
        read_table(tmp_path / "gone.csv")


def test_choosing_keeps_class_numbers() -> None:
    images = LabelledImages([Path("a"), Path("b")], np.array([0, 1]), ["x", "y"], [["1"], ["2"]])
    chosen = images.where(np.array([False, True]))
    assert chosen.paths == [Path("b")]
    assert chosen.labels.tolist() == [1]
    assert chosen.captions == [["2"]]
    assert chosen.counts().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "captions", "message"),
    [
        (np.array([0]), None, "labels must be"),
        (np.array([0, 1], dtype=np.int32), None, "labels must be"),
        (np.array([0, 2]), None, "outside of names"),
        (np.array([0, -2]), None, "outside of names"),
        (np.array([0, 1]), [["a"]], "1 lists of captions"),
    ],
)
def test_records_that_do_not_fit_together(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], captions: list[list[str]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledImages([Path("a"), Path("b")], labels, ["x", "y"], captions)


@pytest.mark.parametrize("empty", ["", None, [], [" "]])
def test_an_empty_column_of_captions_does_not_hide_the_other(tmp_path: Path, empty: object) -> None:
    rows = [
        {"image": "a.jpg", "captions": empty, "caption": "one"},
        {"image": "b.jpg", "captions": ["two", "three"], "caption": empty},
        {"image": "c.jpg", "captions": ["four"], "caption": "not this"},
        {"image": "d.jpg", "captions": empty, "caption": empty},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_table(tmp_path / "t.jsonl").captions == [["one"], ["two", "three"], ["four"], []]
    (tmp_path / "t.csv").write_text("image,captions,caption\na.jpg,,one\nb.jpg,two|three,\n")
    assert read_table(tmp_path / "t.csv").captions == [["one"], ["two", "three"]]


def test_what_is_hidden_is_left_out_and_told(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/.1.jpg", "a/.thumbs/1.jpg", ".trash/2.jpg", ".DS_Store")
    found = read_folder(tmp_path)
    assert relative(found, tmp_path) == [("a/1.jpg", "a")]
    assert found.notices == (
        ".DS_Store: hidden, left out",
        ".trash: hidden, left out",
        "class a: 2 hidden images left out",
    )
