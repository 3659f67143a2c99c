"""A ground truth is read as data: published pickles in every protocol, and none that would run anything."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.gnd import read_gnd

PLAIN: dict[str, Any] = {
    "imlist": ["a_1", "a_2", "b_1"],
    "qimlist": ["q_1", "q_2"],
    "gnd": [
        {"bbx": [1.5, 2.0, 3.0, 4.0], "easy": [0], "hard": [1], "junk": []},
        {"bbx": [0.0, 0.0, 9.0, 9.0], "easy": [], "hard": [2], "junk": [0, 1]},
    ],
}


def as_arrays(dtype: str) -> dict[str, Any]:
    answers = [
        {name: np.array(rows, dtype=float if name == "bbx" else dtype) for name, rows in answer.items()}
        for answer in PLAIN["gnd"]
    ]
    return {**PLAIN, "gnd": answers}


def check(found: dict[str, Any]) -> None:
    assert found["imlist"] == PLAIN["imlist"]
    assert found["qimlist"] == PLAIN["qimlist"]
    for answer, expected in zip(found["gnd"], PLAIN["gnd"], strict=True):
        for name in ("easy", "hard", "junk"):
            assert answer[name].dtype == np.int64
            assert answer[name].tolist() == expected[name]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("content", [PLAIN, as_arrays("int64"), as_arrays(">i4"), as_arrays("float64")])
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int, content: dict[str, Any]) -> None:
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    check(read_gnd(path))


def test_numbers_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "gnd_x.pkl"
    answers = [{"easy": [np.int64(2)], "hard": [np.uint8(1)], "junk": []}] * 2
    path.write_bytes(pickle.dumps({**PLAIN, "gnd": answers}))
    assert read_gnd(path)["gnd"][0]["easy"].tolist() == [2]


def test_python_2_strings(tmp_path: Path) -> None:
    # Python 2 wrote byte strings (opcode S), which is what the published files hold.
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(b"(dp0\nS'imlist'\np1\n(lp2\nS'a'\naS'b'\nasS'qimlist'\np3\n(lp4\nS'q'\nasS'gnd'\np5\n(lp6\n")
    path.write_bytes(path.read_bytes() + b"(dp7\nS'easy'\np8\n(lp9\nI1\nasS'hard'\np10\n(lsS'junk'\np11\n(lsas.")
    found = read_gnd(path)
    assert found["gnd"][0]["easy"].tolist() == [1]
    assert found["imlist"] == ["a", "b"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "gnd_x.json"
    path.write_text(json.dumps(PLAIN))
    check(read_gnd(path))


class _Runs:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path, mark = tmp_path / "gnd_x.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({**PLAIN, "more": _Runs(os.system, f"touch {mark}")}, protocol=protocol))
    with pytest.raises(
        SourceError, match=r"refused, and nothing in it was run: it holds the Python object posix.system"
    ):
        read_gnd(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the same file does run code when it is loaded carelessly"


@pytest.mark.parametrize(
    "call",
    [
        _Runs(eval, "1"),
        _Runs(getattr, "x", "upper"),
        _Runs(np.load, "x"),
        _Runs(__import__, "os"),
        np.array([print], dtype=object),
        np.array(["a"]),
        np.zeros((2, 2)),
        np.arange(3).astype("datetime64[s]"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps({**PLAIN, "more": call}))
    with pytest.raises(SourceError, match="nothing in it was run"):
        read_gnd(path)


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "gnd_x.pkl"
    for name in ("numpy\nndarray", "numpy\ndtype", "_codecs\nencode", "numpy.core.multiarray\nscalar"):
        # BUILD with a state of (None, {name: value}) sets attributes of what was named.
        path.write_bytes(b"c" + name.encode() + b"\n(N(dS'hacked'\nI1\nstb.")
        with pytest.raises(SourceError):
            read_gnd(path)
    path.write_bytes(pickle.dumps(as_arrays("int64")))
    check(read_gnd(path))


def test_a_pickle_cannot_take_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(b"\x80\x02]r" + struct.pack("<I", 0xFFFFFFF0) + b".")
    with pytest.raises(SourceError, match="a table larger than the file"):
        read_gnd(path)
    path.write_bytes(b"\0" * (8 * 1024 * 1024 + 1))
    with pytest.raises(SourceError, match="has less than"):
        read_gnd(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gnd": []}, "list of 2 answers"),
        ({"imlist": "abc"}, "plain file names"),
        ({"imlist": ["../../etc/passwd", "b", "c"]}, "plain file names"),
        ({"qimlist": ["a/b", "c"]}, "plain file names"),
        ({"gnd": [{"easy": [0], "hard": [], "junk": []}, {"easy": [3], "hard": [], "junk": []}]}, "from 0 to 2"),
        ({"gnd": [{"easy": [0.5], "hard": [], "junk": []}] * 2}, "from 0 to 2"),
        ({"gnd": [{"easy": [1e999], "hard": [], "junk": []}] * 2}, "from 0 to 2"),
        ({"gnd": [{"easy": [[0]], "hard": [], "junk": []}] * 2}, "from 0 to 2"),
        ({"gnd": [{"easy": [0]}] * 2}, "'hard' must be"),
        ({"gnd": ["x", "y"]}, "'easy' must be"),
        ({"gnd": [{"easy": [0, 1, 0], "hard": [], "junk": []}] * 2}, "row 0 of imlist stands twice .* of the query"),
        ({"gnd": [{"easy": [1], "hard": [], "junk": [1, 2]}] * 2}, "row 1 of imlist stands twice .* of the query"),
        ({"qimlist": [], "gnd": []}, "must not be empty"),
        ({"imlist": [], "gnd": [{"easy": [], "hard": [], "junk": []}] * 2}, "must not be empty"),
    ],
)
def test_content_that_makes_no_sense(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    for path, text in (
        (tmp_path / "gnd_x.json", json.dumps({**PLAIN, **change}).encode()),
        (tmp_path / "gnd_y.pkl", pickle.dumps({**PLAIN, **change})),
    ):
        path.write_bytes(text)
        with pytest.raises(SourceError, match=message):
            read_gnd(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, data in (("gnd_x.pkl", b""), ("gnd_x.pkl", b"nonsense"), ("gnd_x.json", b"["), ("gnd_x.json", b"[1]")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match="is not a ground truth"):
            read_gnd(tmp_path / name)
    (tmp_path / "gnd_x.json").write_text("[" * 100_000)
    with pytest.raises(SourceError, match="is not a ground truth"):
        read_gnd(tmp_path / "gnd_x.json")
    with pytest.raises(SourceError, match="No such file"):
        read_gnd(tmp_path / "gone.pkl")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5), st.data())
def test_damage_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, data: st.DataObject
) -> None:
    whole = bytearray(pickle.dumps(as_arrays("int64"), protocol=protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "gnd_damaged.pkl"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    with contextlib.suppress(SourceError):
        read_gnd(path)
