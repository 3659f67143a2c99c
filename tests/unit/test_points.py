"""What a point says about its image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mcip_qdrant.keys import ImageRef, encode_path, path_from_uri
from mcip_qdrant.points import OWN_FIELDS, PreparedImage, RunStamp, payload, same_file
from mcip_qdrant.read import FileState

STATE = FileState(123, "2025-01-02T03:04:05.000006Z")
STAMP = RunStamp("run-1", "2025-02-03T04:05:06Z", "scaled")


def image(relative: str = "sub/a.jpg") -> PreparedImage:
    return PreparedImage(ImageRef("s", relative), np.zeros((8, 8, 3), np.uint8), "f" * 64, 40, 30, "JPEG", STATE)


def test_the_whole_payload() -> None:
    assert payload(image(), Path("/data/photos"), STAMP, columns={}, previous={}) == {
        "key": "s/sub/a.jpg",
        "source": "s",
        "uri": "file:///data/photos/sub/a.jpg",
        "sha256": "f" * 64,
        "width": 40,
        "height": 30,
        "format": "JPEG",
        "bytes": 123,
        "modified_at": "2025-01-02T03:04:05.000006Z",
        "ingested_at": "2025-02-03T04:05:06Z",
        "run_id": "run-1",
        "decode": "scaled",
    }


def test_own_fields_are_exactly_what_is_written() -> None:
    assert set(payload(image(), Path("/r"), STAMP, columns={}, previous={})) == OWN_FIELDS


def test_who_wins() -> None:
    fields = payload(
        image(),
        Path("/r"),
        STAMP,
        columns={"tag": "new", "key": "column"},
        previous={"tag": "old", "other": [1], "sha256": "old", "width": 1},
    )
    # Other people's fields stay, the columns replace their own, and nobody replaces ours.
    assert {name: fields[name] for name in ("tag", "other", "sha256", "width", "key")} == {
        "tag": "new",
        "other": [1],
        "sha256": "f" * 64,
        "width": 40,
        "key": "s/sub/a.jpg",
    }


@pytest.mark.parametrize("root", ["/", "/data", "/data/ä 100%"])
@pytest.mark.parametrize("name", [b"a.jpg", b"x/caf\xe9 100%.jpg"])
def test_the_uri_names_the_file(root: str, name: bytes) -> None:
    uri = payload(image(encode_path(name)), Path(root), STAMP, columns={}, previous={})["uri"]
    assert path_from_uri(uri) == bytes(Path(root, "x"))[:-1] + name
    uri.encode("utf-8")


def test_same_file() -> None:
    written = {"bytes": 123, "modified_at": "2025-01-02T03:04:05.000006Z", "sha256": "f" * 64}
    assert same_file(written, STATE)
    assert not same_file(written, None)
    assert not same_file({}, STATE)
    assert not same_file({**written, "bytes": 124}, STATE)
    assert not same_file({**written, "modified_at": "2025-01-02T03:04:05.000007Z"}, STATE)
    assert not same_file({"bytes": None, "modified_at": None}, None)
