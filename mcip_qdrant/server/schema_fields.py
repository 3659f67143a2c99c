"""Words, pictures and names, as clients send them. What does not fit here never reaches the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from mcip_qdrant.server.settings import Limits
from mcip_qdrant.text import is_unicode

LIMITS = Limits()
# 8 x 8 pixels of green.
PICTURE_EXAMPLE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mOU67FhwAaYGHCAwSkB"
    "ALjOAPaqZMyOAAAAAElFTkSuQmCC"
)


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("a text must not be empty")
    if text[:11].lower() == "data:image/":
        raise ValueError('this is a picture, not words: say "modality": "image", or "image" instead of "text"')
    return text


def _whole(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("half a character is no text")
    return text


def _data_url(url: str) -> str:
    head, comma, _ = url[:200].partition(",")
    scheme = head.lower()
    if scheme.startswith(("http:", "https:", "file:", "ftp:")):
        raise ValueError("this server fetches nothing; send the picture itself: data:image/jpeg;base64,…")
    if not comma or not scheme.startswith("data:") or not scheme.endswith(";base64"):
        raise ValueError("a picture is sent as a data URL: data:image/jpeg;base64,…")
    return url


Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_whole)]
Words = Annotated[
    str,
    Field(min_length=1, max_length=LIMITS.max_text_chars, json_schema_extra={"pattern": r"[^\s]"}),
    AfterValidator(_whole),
    AfterValidator(_words),
]
PictureUrl = Annotated[
    str,
    AfterValidator(_data_url),
    WithJsonSchema(
        {
            "type": "string",
            "format": "picture-data-url",
            "description": "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF as data:image/…;base64,…",
            "examples": [PICTURE_EXAMPLE],
        }
    ),
]


class Request(BaseModel):
    """Fields that other servers know and this one does not need are ignored."""

    model_config = ConfigDict(extra="ignore")
