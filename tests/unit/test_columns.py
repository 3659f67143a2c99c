"""The user's own columns: types as written, nothing silently lost, and errors that name the place."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcip_qdrant.columns import Columns
from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import ImageRef, encode_path
from mcip_qdrant.points import OWN_FIELDS


def table(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> Columns:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Columns.read(path)


def refused(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> str:
    with pytest.raises(SourceError) as caught:
        table(tmp_path, content, name)
    message = str(caught.value)
    assert message.startswith(f"--columns {tmp_path / name}: ")
    return message


def typed(value: Any) -> tuple[type, Any]:
    return type(value), value


def column(tmp_path: Path, *cells: str) -> list[Any]:
    """What one CSV column becomes; None where the cell was left out."""
    stream = io.StringIO()
    csv.writer(stream).writerows([["key", "c"], *([f"k{index}", cell] for index, cell in enumerate(cells))])
    columns = table(tmp_path, stream.getvalue())
    return [columns(ImageRef("s", f"k{index}")).get("c") for index in range(len(cells))]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "20", "-3", "0"], [1, 20, -3, 0]),
        (["007", "1"], ["007", "1"]),
        (["1.0", "2"], [1.0, 2.0]),
        (["1e3", "-2.5E-1"], [1000.0, -0.25]),
        (["true", "False", "TRUE"], [True, False, True]),
        (["true", "1"], ["true", "1"]),
        (["yes", "no"], ["yes", "no"]),
        (["1", "", "3"], [1, None, 3]),
        (["", ""], [None, None]),
        (["NaN", "1"], ["NaN", "1"]),
        (["inf", "-inf"], ["inf", "-inf"]),
        (["1e999", "1"], ["1e999", "1"]),
        (["+1", "2"], ["+1", "2"]),
        ([" 1", "2"], [" 1", "2"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["01.5", "2"], ["01.5", "2"]),
        ([".5", "2."], [".5", "2."]),
        (["1,5"], ["1,5"]),
        (["0x10"], ["0x10"]),
        (["٣", "1٣"], ["٣", "1٣"]),
        (["999999999999999999"], [999999999999999999]),
        # Identifiers too long for a number keep every digit.
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["2024-01-01"], ["2024-01-01"]),
        (["a\nb", 'q"q'], ["a\nb", 'q"q']),
    ],
)
def test_types_are_those_of_the_whole_column(tmp_path: Path, cells: list[str], expected: list[Any]) -> None:
    assert [typed(value) for value in column(tmp_path, *cells)] == [typed(value) for value in expected]


_CELLS = st.one_of(
    st.text(max_size=8).filter(lambda text: "\0" not in text),
    st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{1,3})?([eE][-+]?[0-9]{1,4})?", fullmatch=True),
    st.sampled_from(["true", "False", "nan", "inf", "", "1e400"]),
)


@given(st.lists(_CELLS, min_size=1, max_size=4))
def test_no_cell_loses_what_it_said(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return
    values = column(tmp_path_factory.mktemp("t"), *cells)
    assert len({type(value) for value in values} - {type(None)}) <= 1
    for cell, value in zip(cells, values, strict=True):
        if value is None:
            assert cell == ""
        elif isinstance(value, bool):
            assert cell.lower() == str(value).lower()
        elif isinstance(value, int):
            assert str(value) == cell or (value == 0 and cell == "-0")
        elif isinstance(value, float):
            assert math.isfinite(value)
            assert value == float(cell)
            assert not cell.lstrip("-").isdigit() or int(cell) == int(value)
        else:
            assert value == cell


def test_all_columns_reach_their_image(tmp_path: Path) -> None:
    columns = table(tmp_path, "year,path,tag\n2001,a.jpg,x\n2002,sub/b.jpg,\n")
    assert columns.unmatched == 2
    assert columns(ImageRef("s", "a.jpg")) == {"year": 2001, "tag": "x"}
    assert columns(ImageRef("s", "sub/b.jpg")) == {"year": 2002}
    assert columns(ImageRef("s", "b.jpg")) == {}
    assert columns.unmatched == 0


def test_unmatched_counts_rows_once(tmp_path: Path) -> None:
    columns = table(tmp_path, "path,t\na,1\nb,2\nc,3\n")
    for _ in range(3):
        columns(ImageRef("s", "a"))
        columns(ImageRef("s", "other"))
    assert columns.unmatched == 2


def test_key_variants(tmp_path: Path) -> None:
    columns = table(tmp_path, "key,t\ns/full.jpg,1\nshort.jpg,2\nother/x.jpg,3\n100%25.jpg,4\n")
    assert columns(ImageRef("s", "full.jpg")) == {"t": 1}
    assert columns(ImageRef("s", "short.jpg")) == {"t": 2}
    assert columns(ImageRef("s", "x.jpg")) == {}
    assert columns(ImageRef("s", encode_path("100%.jpg"))) == {"t": 4}
    assert columns.unmatched == 1


def test_a_path_is_not_taken_for_a_key(tmp_path: Path) -> None:
    """An archive that was unpacked into itself: `photos/a.jpg` is one image's key and another one's path."""
    outer, inner = ImageRef("photos", "a.jpg"), ImageRef("photos", "photos/a.jpg")
    columns = table(tmp_path, "path,t\nphotos/a.jpg,1\na.jpg,2\n")
    assert (columns(outer), columns(inner)) == ({"t": 2}, {"t": 1})
    assert columns.unmatched == 0
    columns = table(tmp_path, "path,t\nphotos/a.jpg,1\n")
    assert (columns(outer), columns(inner)) == ({}, {"t": 1})
    columns = table(tmp_path, "key,t\nphotos/photos/a.jpg,1\nphotos/a.jpg,2\n")
    assert (columns(outer), columns(inner)) == ({"t": 2}, {"t": 1})
    columns = table(tmp_path, "key,t\nphotos/a.jpg,1\n")
    assert (columns(outer), columns(inner)) == ({"t": 1}, {})
    rows = '{"key": "photos/a.jpg", "t": 1}\n{"path": "a.jpg", "t": 2}\n{"path": "photos/a.jpg", "t": 3}\n'
    columns = table(tmp_path, rows, "t.jsonl")
    assert (columns(outer), columns(inner)) == ({"t": 1}, {"t": 3})
    assert columns.unmatched == 1


def test_paths_are_plain_file_names(tmp_path: Path) -> None:
    columns = table(tmp_path, 'path,t\n100%.jpg,1\n%41.jpg,2\n"new\nline.jpg",3\nä.jpg,4\n')
    for name, value in ((b"100%.jpg", 1), (b"%41.jpg", 2), (b"new\nline.jpg", 3), ("ä.jpg".encode(), 4)):
        assert columns(ImageRef("s", encode_path(name))) == {"t": value}
    assert columns(ImageRef("s", encode_path(b"A.jpg"))) == {}


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    columns = table(tmp_path, b'\xef\xbb\xbfkey,t\r\na.jpg,"x\r\ny"\r\n')
    assert columns(ImageRef("s", "a.jpg")) == {"t": "x\r\ny"}
    columns = table(tmp_path, b'\xef\xbb\xbf{"key": "a.jpg", "t": 1}\r\n', "t.jsonl")
    assert columns(ImageRef("s", "a.jpg")) == {"t": 1}


def test_suffix_decides_the_format(tmp_path: Path) -> None:
    assert table(tmp_path, "key,t\na,1\n", "T.CSV")(ImageRef("s", "a")) == {"t": 1}
    assert "expected a .csv or .jsonl file" in refused(tmp_path, "key,t\na,1\n", "t.tsv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("key,t\na,1\nb\n", "row 2 does not have 2 cells"),
        ("key,t\na,1,2\n", "row 1 does not have 2 cells"),
        ("name,t\na,1\n", "row 1 has no 'key' or 'path' column (it has name, t)"),
        ("key,t\na,1\nb,2\na,3\n", "row 3 is the second one for 'a'"),
        ('key,t\na,"1\n', "unexpected end of data"),
        ('key,t\na,"1"x\n', "expected after"),
        (b"key,t\n\xff,1\n", "utf-8"),
        ("key,t,t\na,1,2\n", "'t' is there twice"),
        ("path,t\na\0b,1\n", "NUL"),
        (",path,t\n0,a,1\n", "column 1 has no name"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in refused(tmp_path, content)


@pytest.mark.parametrize("name", sorted(OWN_FIELDS - {"key"}))
def test_our_own_field_names_are_reserved(tmp_path: Path, name: str) -> None:
    assert f"the column {name!r} is written by mcip-qdrant itself" in refused(tmp_path, f"key,{name}\na,1\n")
    assert f"the column {name!r} is written" in refused(tmp_path, json.dumps({"path": "a", name: 1}), "t.jsonl")


def test_key_beside_path_is_the_key(tmp_path: Path) -> None:
    assert table(tmp_path, "path,key\nx,a\n")(ImageRef("s", "a")) == {"path": "x"}


def test_missing_and_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.csv: No such file"):
        Columns.read(tmp_path / "none.csv")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SourceError, match="Is a directory"):
        Columns.read(tmp_path / "folder.jsonl")


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    for content, name in (("", "t.csv"), ("key,t\n", "t.csv"), ("\n\n", "t.jsonl")):
        columns = table(tmp_path, content, name)
        assert columns.unmatched == 0
        assert columns(ImageRef("s", "a")) == {}


def test_jsonl_keeps_its_types(tmp_path: Path) -> None:
    row = {"t": "007", "n": 1, "f": 1.0, "b": True, "l": ["a", {"x": None}], "z": None, "e": ""}
    columns = table(tmp_path, "\n" + json.dumps({"path": "a", **row}) + "\n\n" + json.dumps({"key": "b"}), "t.jsonl")
    found = dict(columns(ImageRef("s", "a")))
    assert {name: typed(value) for name, value in found.items()} == {name: typed(value) for name, value in row.items()}
    assert columns(ImageRef("s", "b")) == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3 is not JSON"),
        ("[1]", "line 3 is not a JSON object"),
        ("5", "line 3 is not a JSON object"),
        ('{"path": "b", "t": NaN}', "line 3 is not JSON"),
        ('{"path": "b", "t": [-Infinity]}', "line 3 is not JSON"),
        ('{"path": "b", "t": 1e999}', "line 3 is not JSON"),
        ("[" * 200_000, "line 3 is not JSON"),
        ('{"t": 1}', "no 'key' or 'path' column (it has t)"),
        ('{"path": "a"}', "second one for 'a'"),
        ('{"path": "\\ud800"}', "surrogates"),
        ('{"path": "b\\u0000"}', "NUL"),
        ('{"path": "b", "t": "\\ud800"}', "line 3 is not JSON"),
        ('{"path": null}', "is not text"),
        ('{"key": ["a"]}', "is not text"),
    ],
)
def test_bad_jsonl_is_refused(tmp_path: Path, line: str, words: str) -> None:
    assert words in refused(tmp_path, '{"path": "a"}\n\n' + line + "\n", "t.jsonl")
