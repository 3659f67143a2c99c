"""The ground truth of revisited Oxford and Paris: `gnd_*.pkl` as published, or the same as JSON. No code in it ever runs.

A pickle is a program. This reader runs the part of it that makes plain values, and knows NumPy's arrays as data: whatever
else the file names is refused before it is looked up, so nothing is imported or called.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.errors import SourceError

_MAX_BYTES: Final = 8 * 1024 * 1024
_PLAIN_DTYPES: Final = frozenset("?bhilqBHILQfde") | {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)}


class _Sealed(type):
    """Classes that a pickle cannot change, which it may otherwise do to whatever it can name."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"a change of {cls.__name__}.{name}")


class _Dtype(metaclass=_Sealed):
    """A NumPy dtype as a pickle describes it."""

    def __init__(self, name: object = "", *_: object) -> None:
        if name not in _PLAIN_DTYPES:
            raise pickle.UnpicklingError(f"an array of {name!r}")
        self.dtype = np.dtype(str(name))

    def __setstate__(self, state: Sequence[Any]) -> None:
        if len(state) > 1 and state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array(metaclass=_Sealed):
    """A NumPy array as a pickle describes it: shape, dtype and bytes; NumPy's own unpickling takes no part."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Sequence[Any]) -> None:
        _version, shape, dtype, _fortran, raw = state
        if not isinstance(dtype, _Dtype) or len(shape) > 1:
            raise pickle.UnpicklingError("an array that is not a plain list of numbers")
        self.values = np.frombuffer(_bytes(raw), dtype=dtype.dtype)


class _Scalar(metaclass=_Sealed):
    """`numpy.core.multiarray.scalar(dtype, bytes)`: one number."""

    def __new__(cls, dtype: object, raw: object) -> Any:
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a number that is none")
        return np.frombuffer(_bytes(raw), dtype=dtype.dtype)[0].item()


class _Latin1(metaclass=_Sealed):
    """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes in old protocols."""

    def __new__(cls, text: object, encoding: object = "latin1") -> Any:
        if encoding not in {"latin1", "latin-1"}:
            raise pickle.UnpicklingError(f"a string in {encoding!r}")
        return _bytes(text)


class _FromBuffer(metaclass=_Sealed):
    """`numpy._core.numeric._frombuffer(bytes, dtype, shape, order)`: an array in protocol 5."""

    def __new__(cls, raw: object, dtype: object, shape: Sequence[Any], _order: object) -> Any:
        made = _Array()
        made.__setstate__((1, shape, dtype, False, bytes(raw) if isinstance(raw, bytearray) else raw))
        return made


class _NoBytes(metaclass=_Sealed):
    """`bytes()`: how Python 3 writes an empty one in old protocols."""

    def __new__(cls) -> Any:
        return b""


def _bytes(raw: object) -> bytes:
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("an array without its bytes")
    return data


_KNOWN: Final[Mapping[tuple[str, str], Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{
        (module, name): stand_in
        for core in ("numpy.core", "numpy._core")
        for module, name, stand_in in (
            (f"{core}.multiarray", "_reconstruct", _Array),
            (f"{core}.multiarray", "scalar", _Scalar),
            (f"{core}.numeric", "_frombuffer", _FromBuffer),
        )
    },
    ("__builtin__", "bytes"): _NoBytes,
    ("builtins", "bytes"): _NoBytes,
    ("_codecs", "encode"): _Latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only stand-ins of our own; nothing is imported."""
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the Python object {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError(f"a reference to something outside of the file ({pid!r})")


def read_gnd(path: Path) -> dict[str, Any]:
    """Read `{"imlist": [name, …], "qimlist": [name, …], "gnd": [{"easy": [row, …], "hard": …, "junk": …}, …]}`.

    Returns:
        The same, with `easy`, `hard` and `junk` as int64 arrays.

    Raises:
        SourceError: unreadable, too large, not of this form, without images or queries, with an image twice in an answer, or
            a pickle that holds anything but plain values and arrays.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SourceError(f"{path}: {path.stat().st_size} bytes; a ground truth has less than {_MAX_BYTES}")
        raw = _from_json(path) if path.suffix == ".json" else _from_pickle(path)
        return _checked(raw)
    except OSError as exc:
        raise SourceError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise SourceError(f"{path} is not a ground truth of revisited Oxford or Paris: {exc}") from exc


def _from_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def _from_pickle(path: Path) -> object:
    data = path.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # The reader makes a table as long as the largest number; one of four billion would take all memory.
            if opcode.name in {"PUT", "LONG_BINPUT"} and int(argument or 0) > len(data):
                raise pickle.UnpicklingError("a table larger than the file")
        # latin1: the published files were written by Python 2.
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as exc:
        raise ValueError(
            f"refused, and nothing in it was run: it holds {exc}. "
            'Convert it where you trust it: json.dump({"imlist": …, "qimlist": …, "gnd": …}) to gnd_NAME.json'
        ) from exc
    except Exception as exc:  # a damaged pickle fails in a dozen ways
        raise ValueError(f"damaged ({type(exc).__name__}: {exc})") from exc


def _checked(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict) or not {"imlist", "qimlist", "gnd"} <= set(raw):
        raise ValueError("imlist, qimlist and gnd are expected")
    images, queries, answers = (raw[name] for name in ("imlist", "qimlist", "gnd"))
    for names in (images, queries):
        if not isinstance(names, list) or not all(isinstance(name, str) and _plain(name) for name in names):
            raise ValueError("imlist and qimlist must be lists of plain file names")
        if not names:
            raise ValueError("imlist and qimlist must not be empty")
    if not isinstance(answers, list) or len(answers) != len(queries):
        raise ValueError(f"gnd must be a list of {len(queries)} answers")
    return {
        "imlist": images,
        "qimlist": queries,
        "gnd": [_answer(answer, query, len(images)) for answer, query in zip(answers, queries, strict=True)],
    }


def _plain(name: str) -> bool:
    return name not in {"", ".", ".."} and not {"/", "\\", "\0"} & set(name)


def _answer(raw: object, query: str, count: int) -> dict[str, NDArray[np.int64]]:
    answer = {name: _rows(raw, name, count) for name in ("easy", "hard", "junk")}
    rows, times = np.unique(np.concatenate([*answer.values()]), return_counts=True)
    if (times > 1).any():
        twice = int(rows[times.argmax()])
        raise ValueError(f"row {twice} of imlist stands twice among easy, hard and junk of the query {query!r}")
    return answer


def _rows(answer: object, name: str, count: int) -> NDArray[np.int64]:
    rows = answer.get(name) if isinstance(answer, dict) else None
    if isinstance(rows, _Array):
        rows = rows.values.tolist()
    if not isinstance(rows, list) or not all(_is_row(row, count) for row in rows):
        raise ValueError(f"{name!r} must be a list of rows of imlist, from 0 to {count - 1}")
    return np.array(rows, dtype=np.int64)


def _is_row(row: object, count: int) -> bool:
    whole = isinstance(row, int) or (isinstance(row, float) and row.is_integer())
    return whole and 0 <= row < count  # type: ignore[operator]
