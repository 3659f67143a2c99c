"""The manifest: what was written comes back, and nothing but a `BundleError` ever leaves `from_json`."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_support import manifest

from mcip_qdrant.errors import BundleError
from mcip_qdrant.manifest import FORMAT_VERSION, Graph, Manifest, Preprocess

WRITTEN = json.loads(manifest().to_json())
# Without the digest over itself, so that what is altered below is judged for what it is.
GOOD = {name: value for name, value in WRITTEN.items() if name != "manifest_sha256"}


def places(raw: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    if path:
        yield path
    for name, value in raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ():
        yield from places(value, (*path, name))


# `source`, `tools` and `architecture` are open; the digests and sizes of files have free names.
FREE = {"source", "tools", "architecture", "sha256", "bytes"}
FIXED = [path for path in places(GOOD) if not FREE & set(path[:-1])]
FIELDS = [path for path in FIXED if isinstance(path[-1], str)]


def at(raw: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        raw = raw[step]
    return raw


def with_value(path: tuple[Any, ...], value: Any) -> str:
    raw = copy.deepcopy(GOOD)
    at(raw, path[:-1])[path[-1]] = value
    return json.dumps(raw)


def refused(text: str) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    assert str(caught.value)
    return str(caught.value)


def test_round_trip() -> None:
    text = manifest().to_json()
    assert Manifest.from_json(text) == manifest()
    assert Manifest.from_json(text).to_json() == text
    assert text.endswith("}\n")
    assert "größe" in text
    assert list(json.loads(text)) == [*GOOD, "manifest_sha256"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("space_id",), "0" * 64),
        (("embedding_dim",), 9),
        (("preprocess", "resize_mode"), "squash"),
        (("preprocess", "mean"), [0.5, 0.25, 0.126]),
        (("source", "more"), 1),
        (("manifest_sha256",), "0" * 64),
        (("manifest_sha256",), 5),
    ],
)
def test_a_manifest_that_was_altered_is_refused(path: tuple[Any, ...], value: Any) -> None:
    """Every one of these is a good manifest by itself, and some would make a collection of other vectors."""
    raw = copy.deepcopy(WRITTEN)
    at(raw, path[:-1])[path[-1]] = value
    assert "manifest_sha256 differs" in refused(json.dumps(raw))
    if path != ("manifest_sha256",):
        del raw["manifest_sha256"]  # a bundle of before it: taken at its word
        Manifest.from_json(json.dumps(raw))


def test_how_the_json_is_laid_out_does_not_matter() -> None:
    turned = dict(reversed(WRITTEN.items()))
    assert Manifest.from_json(json.dumps(turned, indent=None)) == manifest()


def test_what_comes_back_has_the_right_types() -> None:
    found = Manifest.from_json(manifest().to_json())
    assert found.preprocess.size == (8, 8)
    assert found.preprocess.mean == (0.5, 0.25, 0.125)
    assert isinstance(found.graphs, tuple)
    assert isinstance(found.graphs[0], Graph)
    assert hash(found.preprocess) == hash(manifest().preprocess)


def test_whole_numbers_are_good_floats() -> None:
    assert Manifest.from_json(with_value(("preprocess", "mean"), [0, 0, 1])).preprocess.mean == (0, 0, 1)


def test_this_test_knows_all_fields() -> None:
    assert len(FIELDS) > 40
    assert {("model",), ("preprocess", "size"), ("tokenizer", "file"), ("graphs", 0, "parity", "minimum")} <= set(
        FIELDS
    )


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_field(path: tuple[Any, ...]) -> None:
    raw = copy.deepcopy(GOOD)
    del at(raw, path[:-1])[path[-1]]
    optional = {"interpolation", "resize_mode", "fill_color", "mode"}
    if path in {("tokenizer", "file"), *(("preprocess", name) for name in optional)}:
        assert Manifest.from_json(json.dumps(raw)) == manifest()
    else:
        refused(json.dumps(raw))


@pytest.mark.parametrize("path", [(), ("preprocess",), ("tokenizer",), ("graphs", 0), ("graphs", 1, "parity")])
def test_an_unknown_field(path: tuple[Any, ...]) -> None:
    raw = copy.deepcopy(GOOD)
    at(raw, path)["surprise"] = 1
    assert "unknown field 'surprise'" in refused(json.dumps(raw))


@pytest.mark.parametrize("path", FIXED, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_the_wrong_kind(path: tuple[Any, ...]) -> None:
    good = at(GOOD, path)
    for wrong in (None, True, "x", 1.5, -1, [], [1], {}, {"a": 1}, [[]]):
        same_kind = type(wrong) is type(good) or (isinstance(good, float) and wrong == -1)
        if not same_kind:
            refused(with_value(path, wrong))


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None, True, 1.0, [1]])
def test_another_format_version(version: Any) -> None:
    message = refused(with_value(("format_version",), version))
    if version != 1:
        assert repr(version) in message
        assert f"reads {FORMAT_VERSION}" in message


def test_the_version_is_looked_at_first() -> None:
    # A later version may have any fields; the reader must say "version", not "unknown field".
    assert "format version is 99" in refused(json.dumps({"format_version": 99, "surprise": 1}))
    assert "format version is None" in refused("{}")


NAMES = ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "a/", "./a", "a\0b"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_cannot_lead_out_of_the_bundle(name: str) -> None:
    assert "plain file name" in refused(with_value(("tokenizer", "file"), name))
    raw = copy.deepcopy(GOOD)
    graph = raw["graphs"][0]
    graph["file"], graph["sha256"][name], graph["bytes"][name] = name, "1" * 64, 1
    assert "plain file name" in refused(json.dumps(raw))
    graph["file"] = "visual.onnx"  # as a side file
    assert "plain file name" in refused(json.dumps(raw))


def test_every_file_of_a_graph_has_digest_and_size() -> None:
    for field in ("sha256", "bytes"):
        for name in ("visual.onnx", "visual.onnx.data"):
            raw = copy.deepcopy(GOOD)
            del raw["graphs"][0][field][name]
            assert "lacks the digest or size" in refused(json.dumps(raw))
    assert "lacks" in refused(with_value(("graphs", 0, "file"), "other.onnx"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("activation",), "relu"),
        (("embedding_dim",), 0),
        (("embedding_dim",), -1),
        (("space_id",), "a" * 63),
        (("preprocess", "interpolation"), "nearest"),
        (("preprocess", "resize_mode"), "stretch"),
        (("preprocess", "mode"), "L"),
        (("preprocess", "size"), [8]),
        (("preprocess", "size"), [8, 0]),
        (("preprocess", "size"), [8, 8, 3]),
        (("preprocess", "mean"), [0.5, 0.5]),
        (("preprocess", "std"), [0.5, 0.5, 0]),
        (("preprocess", "fill_color"), 256),
        (("preprocess", "mean"), [0.5, 0.5, math.nan]),
        (("source",), {"deep": [{"inside": math.inf}]}),
        (("source",), {"half of a character": "\ud800"}),
        (("tokenizer", "cleaning"), "upper"),
        (("graphs", 0, "tower"), "audio"),
        (("graphs", 0, "precision"), "int4"),
    ],
)
def test_values_that_make_no_sense(path: tuple[Any, ...], value: Any) -> None:
    refused(with_value(path, value))


@pytest.mark.parametrize(
    "text", ["", "{", "nonsense", "[" * 200_000, "1" * 10_000, "[]", "null", '"x"', "\ud800", "1" * 5]
)
def test_what_is_no_manifest_at_all(text: str) -> None:
    refused(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(sorted(GOOD)), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=300)
@given(st.sampled_from(list(places(GOOD))), JSON)
def test_only_bundle_errors_leave_a_mutated_manifest(path: tuple[Any, ...], value: Any) -> None:
    try:
        found = Manifest.from_json(with_value(path, value))
    except BundleError:
        return
    assert Manifest.from_json(found.to_json()) == found
    found.to_json().encode()


@given(JSON, st.booleans())
def test_only_bundle_errors_leave_garbage(value: Any, versioned: bool) -> None:
    if versioned and isinstance(value, dict):
        value = {**value, "format_version": FORMAT_VERSION}
    refused(json.dumps(value))


@given(st.text(max_size=50))
def test_only_bundle_errors_leave_text(text: str) -> None:
    refused(text)


def test_preprocess_accepts_lists() -> None:
    config = Preprocess([8, 9], [0, 0, 0], [1, 1, 1])  # type: ignore[arg-type]
    assert config == Preprocess((8, 9), (0, 0, 0), (1, 1, 1))
    assert config.size == (8, 9)
