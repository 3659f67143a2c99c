"""Keys, ids and uris: the rule is a contract with every collection that exists."""

from __future__ import annotations

import os
import re
import uuid

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import (
    NAMESPACE,
    ImageRef,
    decode_path,
    encode_path,
    file_uri,
    path_from_uri,
    point_id,
    source_name,
)

_BYTES = st.binary(max_size=60).filter(lambda raw: b"\0" not in raw)
# Few symbols, so that near-collisions are likely: escapes, halves of UTF-8 characters, an encoded surrogate.
_TRICKY = st.lists(
    st.sampled_from([b"%", b"25", b"FF", b"ff", b"\xff", b"\xc3", b"\xa4", b"\xed\xb2\x80", b"/", b"\n", b"a"]),
    max_size=6,
).map(b"".join)


@given(_BYTES | _TRICKY)
@example(b"%FF\xff%25")
@example(b"\xed\xb3\xbf")
def test_encoding_is_reversible(raw: bytes) -> None:
    encoded = encode_path(raw)
    encoded.encode("utf-8")
    assert decode_path(encoded) == raw
    assert path_from_uri(file_uri(raw)) == raw


@given(_BYTES | _TRICKY, _BYTES | _TRICKY)
def test_distinct_paths_never_share_a_key(one: bytes, other: bytes) -> None:
    assume(one != other)
    assert ImageRef("s", encode_path(one)).key != ImageRef("s", encode_path(other)).key


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="%\0")))
@example("a b/ä\n~?#&+=\t.jpg")
def test_readable_text_stays_as_it_is(text: str) -> None:
    assert encode_path(text.encode()) == text


@given(_BYTES | _TRICKY)
def test_only_percent_and_undecodable_bytes_are_escaped(raw: bytes) -> None:
    encoded = encode_path(raw)
    escapes = re.findall(r"%(..)", encoded)
    assert encoded.count("%") == len(escapes)
    assert [escape for escape in escapes if not re.fullmatch("25|[89A-F][0-9A-F]", escape)] == []
    # What is left without escapes is exactly the UTF-8 part of the path; "%" may stand between the bytes of what would be a character.
    readable = "".join(part.decode("utf-8", errors="ignore") for part in raw.split(b"%"))
    assert re.sub(r"%..", "", encoded) == readable


def test_literal_encodings() -> None:
    assert encode_path(b"100%/caf\xe9 \xc3\xa9.jpg") == "100%25/caf%E9 é.jpg"
    assert encode_path(os.fsdecode(b"caf\xe9")) == "caf%E9"
    assert file_uri(b"/a b/%\xff.jpg") == "file:///a b/%25%FF.jpg"


@pytest.mark.parametrize("path", ["a\0b", b"a\0b"])
def test_nul_is_refused(path: str | bytes) -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode_path(path)


def test_other_schemes_have_no_path() -> None:
    assert path_from_uri("s3://bucket/a.jpg") is None
    assert path_from_uri("/a.jpg") is None


def test_ids_are_pinned() -> None:
    # Literal values on purpose: a change here orphans every point of every collection.
    assert str(NAMESPACE) == "bb6fe4f4-873e-5dd1-8f1c-a9dc6a1883a4"
    ref = ImageRef("photos", "2024/a.jpg")
    assert ref.key == "photos/2024/a.jpg"
    assert ref.point_id == point_id(ref.key) == "e387b6b6-1c77-53c3-a5ce-43f8468f3099"
    assert uuid.UUID(ref.point_id).version == 5


@given(st.text(max_size=20), st.text(max_size=20))
def test_ids_follow_keys(one: str, other: str) -> None:
    assert (point_id(one) == point_id(other)) == (one == other)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "a\nb", "\t", "a\0b", "a\x7f", "a\x85b", b"", b"a/b", b"\x1b[0m"]
)
def test_source_names_refused(name: str | bytes) -> None:
    with pytest.raises(SourceError, match="--source"):
        source_name(name)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("photos", "photos"),
        ("my photos", "my photos"),
        ("50%", "50%25"),
        (b"\xff", "%FF"),
        ("...", "..."),
        ("Bücher", "Bücher"),
    ],
)
def test_source_names_accepted(name: str | bytes, encoded: str) -> None:
    assert source_name(name) == encoded
