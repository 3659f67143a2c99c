"""What a point says about its image, and whether the image behind it has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcip_qdrant.keys import ImageRef, decode_path, file_uri
from mcip_qdrant.read import FileState

DecodeMode = Literal["exact", "scaled"]

OWN_FIELDS = frozenset(
    {
        "key",
        "source",
        "uri",
        "sha256",
        "width",
        "height",
        "format",
        "bytes",
        "modified_at",
        "ingested_at",
        "run_id",
        "decode",
    }
)
"""Payload fields that mcip-qdrant writes; the user's own columns cannot take these names."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image ready for the encoder: pixels uint8 `[H, W, 3]`, and the payload fields that its bytes decided."""

    ref: ImageRef
    pixels: NDArray[np.uint8]
    sha256: str
    width: int
    height: int
    format: str
    state: FileState


@dataclass(frozen=True, slots=True)
class RunStamp:
    """What all points of one run have in common."""

    run_id: str
    ingested_at: str
    decode: DecodeMode


def payload(
    image: PreparedImage, root: Path, stamp: RunStamp, *, columns: Mapping[str, Any], previous: Mapping[str, Any]
) -> dict[str, Any]:
    """The payload of a point.

    Fields that somebody else put on the previous version of the point are kept: a changed picture keeps its tags.
    """
    kept = {name: value for name, value in previous.items() if name not in OWN_FIELDS}
    return {
        **kept,
        **columns,
        "key": image.ref.key,
        "source": image.ref.source,
        "uri": image_uri(root, image.ref),
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "bytes": image.state.bytes,
        "modified_at": image.state.modified_at,
        "ingested_at": stamp.ingested_at,
        "run_id": stamp.run_id,
        "decode": stamp.decode,
    }


def image_uri(root: Path, ref: ImageRef) -> str:
    """Where the image lies now."""
    return file_uri(bytes(root / os.fsdecode(decode_path(ref.relative))))


def same_file(previous: Mapping[str, Any], state: FileState | None) -> bool:
    """Same size and modification time as when the point was written."""
    return (
        state is not None and previous.get("bytes") == state.bytes and previous.get("modified_at") == state.modified_at
    )


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON; Python's own `==` also takes True for 1 and 1 for 1.0, which filters tell apart."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)
