"""The task message: one chunk of image references, as JSON. Never pixels, vectors, absolute paths or secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from mcip_qdrant.errors import MessageError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.points import DecodeMode

FORMAT = 1
MAX_IMAGES = 4096


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of one run.

    `images` are encoded paths relative to the source's root. `generation` counts replays of dead letters. `postponed` counts
    how often Qdrant was away when the chunk was tried. `suspect`: one of these images may kill the process that decodes it.
    `columns` holds the user's own payload fields by relative path.
    """

    run: str
    collection: str
    space_id: str
    source: str
    images: tuple[str, ...]
    ingested_at: str
    decode: DecodeMode = "exact"
    checksum: bool = False
    max_bytes: int = 0
    max_pixels: int = 0
    generation: int = 0
    postponed: int = 0
    suspect: bool = False
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Digest of run, generation and ordered keys: the same images of the same run are the same chunk."""
        identity = json.dumps([self.run, self.generation, self.source, self.images], ensure_ascii=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def refs(self) -> list[ImageRef]:
        """The references, in order."""
        return [ImageRef(self.source, relative) for relative in self.images]

    def of(self, images: Sequence[str]) -> Self:
        """A chunk of some of these images, or of replayed ones."""
        kept = {relative: self.columns[relative] for relative in images if relative in self.columns}
        return replace(self, images=tuple(images), columns=kept, postponed=0)

    def to_message(self) -> dict[str, Any]:
        """As JSON types."""
        return {"format": FORMAT} | {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """Read a message; whatever is not understood wholly is refused.

        Raises:
            MessageError: another format version, missing or unknown fields, wrong types.
        """
        if not isinstance(message, dict) or "format" not in message:
            raise MessageError("not a chunk of mcip-qdrant")
        if type(message["format"]) is not int or message["format"] != FORMAT:
            raise MessageError(
                f"message of format {message['format']!r}; this worker reads format {FORMAT}. Dispatcher and workers must be "
                "of the same mcip-qdrant version"
            )
        given = {name: value for name, value in message.items() if name != "format"}
        known = {item.name for item in fields(cls)}
        if set(given) != known:
            raise MessageError(f"fields {sorted(set(given) ^ known)} are missing or unknown")
        _check_types(given)
        return cls(**{**given, "images": tuple(given["images"])})


def _check_types(given: Mapping[str, Any]) -> None:
    texts = ("run", "collection", "space_id", "source", "ingested_at")
    counts = ("max_bytes", "max_pixels", "generation", "postponed")
    images, columns = given["images"], given["columns"]
    wrong = [name for name in texts if not isinstance(given[name], str) or not given[name]]
    wrong += [name for name in counts if type(given[name]) is not int or given[name] < 0]
    if given["decode"] not in ("exact", "scaled"):  # no set: a list has no hash
        wrong.append("decode")
    wrong += [name for name in ("checksum", "suspect") if not isinstance(given[name], bool)]
    if (
        not isinstance(images, list | tuple)
        or not 0 < len(images) <= MAX_IMAGES
        or not all(isinstance(item, str) and item for item in images)
        or len(set(images)) != len(images)
    ):
        wrong.append("images")
    if not isinstance(columns, dict) or not all(isinstance(value, dict) for value in columns.values()):
        wrong.append("columns")
    wrong += [name for name, value in given.items() if name not in wrong and not _is_storable(value)]
    if wrong:
        raise MessageError(f"fields {wrong} have values that make no sense")


def _is_storable(value: Any) -> bool:
    try:
        # Python also reads NaN and half surrogate pairs, which neither Redis nor Qdrant can store.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return False
    return True
