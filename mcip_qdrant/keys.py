"""Names of images: path -> key -> point id, and path -> uri. One reversible rule for all of them.

A key is `<source>/<relative POSIX path>`. In keys and uris, `%` and bytes that are not UTF-8 are percent-encoded; everything else
stays readable. `urllib.parse.unquote_to_bytes` undoes it.
"""

from __future__ import annotations

import os
import unicodedata
import uuid
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from mcip_qdrant.errors import SourceError

# Part of the contract: changing it would give every image of every existing collection a new id.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "mcip-qdrant.image-key")

_FILE_SCHEME = "file://"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Reference to one image: a source name and an encoded path relative to that source's root."""

    source: str
    relative: str

    @property
    def key(self) -> str:
        """`<source>/<relative>`: what the collection knows the image by."""
        return f"{self.source}/{self.relative}"

    @property
    def point_id(self) -> str:
        """The point's UUID, as text."""
        return point_id(self.key)


def point_id(key: str) -> str:
    """UUID (as text) of the point that holds the image with this key: `uuid5(NAMESPACE, key)`."""
    return str(uuid.uuid5(NAMESPACE, key))


def encode_path(path: str | bytes) -> str:
    """Encode an OS path: `%` becomes `%25`, bytes that are not UTF-8 become `%XX`.

    Raises:
        ValueError: the path contains a NUL.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("a path cannot contain NUL")
    readable = raw.replace(b"%", b"%25").decode("utf-8", errors="surrogateescape")
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in readable)


def decode_path(encoded: str) -> bytes:
    """Undo `encode_path`."""
    return unquote_to_bytes(encoded)


def file_uri(path: str | bytes) -> str:
    """`file://` and the encoded absolute path."""
    return _FILE_SCHEME + encode_path(path)


def path_from_uri(uri: str) -> bytes | None:
    """The path that a `file://` uri names, or None for any other scheme."""
    return decode_path(uri.removeprefix(_FILE_SCHEME)) if uri.startswith(_FILE_SCHEME) else None


def source_name(name: str | bytes) -> str:
    """Check and encode a source name.

    Raises:
        SourceError: empty, `.`, `..`, or containing a slash or control characters.
    """
    try:
        encoded = encode_path(name)
    except ValueError:  # a NUL is a control character like others
        encoded = ""
    if encoded in {"", ".", ".."} or "/" in encoded or any(unicodedata.category(char) == "Cc" for char in encoded):
        raise SourceError(
            f"source name {name!r} cannot be used; choose another with --source NAME (no slash, not empty)"
        )
    return encoded
