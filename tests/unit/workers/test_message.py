"""Messages: what is written is read back, and whatever is not understood wholly is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from worker_support import chunk

from mcip_qdrant.errors import MessageError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.workers.message import FORMAT, MAX_IMAGES, Chunk

SOME = settings(max_examples=50, deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
COUNT = st.integers(0, 2**63)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
IMAGES = st.lists(TEXT, min_size=1, max_size=6, unique=True).map(tuple)


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Any chunk that a dispatcher could make."""
    images = draw(IMAGES)
    columns = draw(st.dictionaries(st.sampled_from(images), st.dictionaries(TEXT, JSON, max_size=3), max_size=3))
    counts = {name: draw(COUNT) for name in ("max_bytes", "max_pixels", "generation", "postponed")}
    texts = {name: draw(TEXT) for name in ("run", "collection", "space_id", "source", "ingested_at")}
    flags = {name: draw(st.booleans()) for name in ("checksum", "suspect")}
    decode: Any = draw(st.sampled_from(["exact", "scaled"]))
    return Chunk(images=images, columns=columns, decode=decode, **counts, **texts, **flags)


def sent(message: dict[str, Any]) -> Any:
    """As it arrives: through JSON."""
    return json.loads(json.dumps(message))


@given(chunks())
@SOME
def test_round_trip(before: Chunk) -> None:
    message = sent(before.to_message())
    after = Chunk.from_message(message)
    assert after == before
    assert after.id == before.id
    assert after.refs() == [ImageRef(before.source, relative) for relative in before.images]
    # Nothing but what the contract names: no pixels, vectors, absolute paths or secrets.
    assert set(message) == {"format"} | {item.name for item in fields(Chunk)}


NUMBERS = ("max_bytes", "max_pixels", "generation", "postponed")
TEXTS = ("run", "collection", "space_id", "source", "ingested_at")
NO_TEXT = st.sampled_from([None, True, 0, 1.5, "", [], ["x"], {}, {"x": "x"}, "\ud800", "x\udcff"])
NO_COUNT = st.sampled_from([None, True, False, -1, 1.0, "1", "", [], [1], {}])
NO_FLAG = st.sampled_from([None, 0, 1, "", "true", "false", [], {}])
NO_DECODE = st.sampled_from([None, True, 0, "", "Exact", "fast", [], ["exact"], {}, {"exact": 1}])
NO_IMAGES = st.sampled_from(
    [
        *(None, True, 7, "a.png", "", {}, {"a.png": 1}, [], [""], [None], [1], [True], [{}]),
        *(["a", ""], ["a", "a"], ["a", ["b"]], ["a", "\udcff"]),
    ]
)
NO_COLUMNS = st.sampled_from([None, False, 3, "", "x", [], [{}], {"a": None}, {"a": []}, {"a": "x"}])
NO_UNICODE = st.sampled_from([{"a": {"b": "\ud800"}}, {"a": {"\udfff": 1}}, {"\ud800": {}}, {"a": {"b": float("nan")}}])
NO_FORMAT = st.sampled_from([None, 0, 2, -1, 1.0, 1.5, True, "1", "", [], [1], {}])
MUTATIONS = st.one_of(
    st.tuples(st.sampled_from(TEXTS), NO_TEXT),
    st.tuples(st.sampled_from(NUMBERS), NO_COUNT),
    st.tuples(st.sampled_from(["checksum", "suspect"]), NO_FLAG),
    st.tuples(st.just("decode"), NO_DECODE),
    st.tuples(st.just("images"), NO_IMAGES),
    st.tuples(st.just("columns"), NO_COLUMNS | NO_UNICODE),
    st.tuples(st.just("format"), NO_FORMAT),
)


@given(chunks(), MUTATIONS)
@settings(max_examples=120, deadline=None)
def test_a_field_with_a_value_that_makes_no_sense(before: Chunk, mutation: tuple[str, Any]) -> None:
    message = sent({**before.to_message(), mutation[0]: mutation[1]})
    with pytest.raises(MessageError, match=mutation[0]):
        Chunk.from_message(message)


@given(chunks(), st.data())
@SOME
def test_missing_and_unknown_fields(before: Chunk, data: st.DataObject) -> None:
    message = sent(before.to_message())
    lost = data.draw(st.sampled_from(sorted(message)))
    with pytest.raises(MessageError, match=lost if lost != "format" else "not a chunk"):
        Chunk.from_message({name: value for name, value in message.items() if name != lost})
    more = data.draw(TEXT)
    assume(more not in message)
    with pytest.raises(MessageError, match="missing or unknown"):
        Chunk.from_message({**message, more: 1})


@given(JSON | st.binary() | st.dictionaries(st.sampled_from(["format", "run", "images"]), JSON))
@example({})
@example({"format": FORMAT})
@example(pickle.dumps(chunk()))
@example(json.dumps(chunk().to_message()))
@example([chunk().to_message()])
@example(chunk())
@SOME
def test_something_else_altogether(message: Any) -> None:
    with pytest.raises(MessageError):
        Chunk.from_message(message)


def test_another_format_says_what_to_do() -> None:
    with pytest.raises(MessageError, match=r"format 2.*reads format 1.*same mcip-qdrant version"):
        Chunk.from_message({**chunk().to_message(), "format": 2, "shape": "new"})


def test_the_largest_chunk() -> None:
    names = [f"{number:06d}.png" for number in range(MAX_IMAGES + 1)]
    largest = chunk(*names[:-1])
    assert Chunk.from_message(sent(largest.to_message())) == largest
    with pytest.raises(MessageError, match="images"):
        Chunk.from_message(sent(chunk(*names).to_message()))


def test_images_arrive_as_a_tuple() -> None:
    assert Chunk.from_message(sent(chunk("b", "a").to_message())).images == ("b", "a")


# The id: the same images of the same run and generation, and nothing else.


@given(chunks(), chunks())
@SOME
def test_the_same_id_means_the_same_images_of_the_same_run(one: Chunk, other: Chunk) -> None:
    same = replace(
        other, run=one.run, generation=one.generation, source=one.source, images=one.images, columns=one.columns
    )
    assert same.id == one.id
    alike = (one.run, one.generation, one.source, one.images) == (
        other.run,
        other.generation,
        other.source,
        other.images,
    )
    assert (one.id == other.id) == alike


@given(chunks(), st.data())
@SOME
def test_another_id_for_anything_else(one: Chunk, data: st.DataObject) -> None:
    others = [
        replace(one, run=one.run + "x"),
        replace(one, generation=one.generation + 1),
        replace(one, source=one.source + "x"),
        replace(one, images=(*one.images, "".join(one.images) + "x")),
        replace(one, images=("".join(one.images) + "y",)),
    ]
    if len(one.images) > 1:
        others += [replace(one, images=one.images[1:]), replace(one, images=one.images[::-1])]
    assert len({one.id, *(other.id for other in others)}) == len(others) + 1
    assert all(len(other.id) == 32 and other.id.isalnum() for other in others)


def test_ids_stay_what_they_are() -> None:
    """A run that was dispatched by one version is continued by the next one."""
    assert chunk("a.png", "ä/b.png").id == "b2e7961610b3dc1bca626680d15b427f"


def test_names_that_join_alike_are_told_apart() -> None:
    assert chunk("a", "b,c").id != chunk("a,b", "c").id != chunk("a", "b", "c").id
    assert chunk('a", "b').id != chunk("a", "b").id


@given(chunks(), st.data())
@SOME
def test_a_part_of_a_chunk(whole: Chunk, data: st.DataObject) -> None:
    images = data.draw(st.lists(st.sampled_from(whole.images), min_size=1, unique=True))
    piece = whole.of(images)
    assert piece.images == tuple(images)
    assert piece.columns == {name: row for name, row in whole.columns.items() if name in images}
    assert piece.postponed == 0
    assert replace(piece, images=whole.images, columns=whole.columns, postponed=whole.postponed) == whole
