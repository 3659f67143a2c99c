"""What clients send and get, as the OpenAPI page shows it. What does not fit here never reaches the model."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    WithJsonSchema,
)

from mcip_qdrant.server.settings import Limits

_LIMITS = Limits()
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
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("half a character is no text") from exc
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
    Field(min_length=1, max_length=_LIMITS.max_text_chars, json_schema_extra={"pattern": r"[^\s]"}),
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


class _Embedding(Request):
    model: str | None = Field(None, description="Any name: the one model here answers, and says which it is")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32")
    dimensions: int | None = Field(None, description="Must be the model's own, where it is given")
    user: str | None = None


def _no_tokens(given: Any) -> Any:
    if isinstance(given, list) and given and isinstance(given[0], (int, list)):
        raise ValueError(
            "send texts, not token ids: this model has a tokenizer of its own "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
        )
    return given


class TextEmbedding(_Embedding):
    """Texts, in the form of OpenAI's API."""

    input: Annotated[
        Words | Annotated[list[Words], Field(min_length=1, max_length=_LIMITS.max_texts)], BeforeValidator(_no_tokens)
    ]
    modality: Literal["text"] = "text"


class ImageEmbedding(_Embedding):
    """Pictures, in the form of infinity."""

    input: PictureUrl | Annotated[list[PictureUrl], Field(min_length=1, max_length=_LIMITS.max_images)]
    modality: Literal["image"]


class _Url(Request):
    url: PictureUrl


class TextPart(Request):
    """Words in a message."""

    type: Literal["text"]
    text: Words


class ImagePart(Request):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: _Url


class Message(Request):
    """A message with one text or one picture."""

    role: str = "user"
    content: Words | Annotated[list[TextPart | ImagePart], Field(min_length=1, max_length=1)]


class MessageEmbedding(_Embedding):
    """One text or one picture, in the form of vLLM."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]


def _form(given: Any) -> str:
    if isinstance(given, dict):
        if given.get("messages") is not None:
            return "_messages"
        if given.get("modality") == "image":
            return "_image"
    return "_text"


EmbeddingRequest = Annotated[
    Annotated[TextEmbedding, Tag("_text")]
    | Annotated[ImageEmbedding, Tag("_image")]
    | Annotated[MessageEmbedding, Tag("_messages")],
    Discriminator(_form),
]


class Embedding(BaseModel):
    """One vector, unit norm."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool = Field(False, description="The text was longer than the model reads; its end was left out")


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """Vectors in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str = Field(description="The model that really answered")
    usage: Usage


class Model(BaseModel):
    """The model that this server runs."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["mcip-qdrant"] = "mcip-qdrant"
    space_id: str = Field(description="Vectors of equal space_id can be compared")
    embedding_dim: int
    context_length: int
    precision: str


class ModelList(BaseModel):
    """All models of this server: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class LikeExamples(Request):
    """Images of the collection, by key or point id."""

    positive: list[Name] = Field(default=[], max_length=32)
    negative: list[Name] = Field(default=[], max_length=32)


class MixPart(Request):
    """Words or a picture, and how much they count; a negative weight turns away from them."""

    text: Words | None = None
    image: PictureUrl | None = None
    weight: FiniteFloat = 1.0


def _finite(vector: list[float]) -> list[float]:
    if not all(math.isfinite(number) for number in vector):
        raise ValueError("a vector must hold finite numbers only")
    return vector


class SearchRequest(Request):
    """Exactly one of `text`, `image`, `like`, `mix` and `vector`; the rest narrows or widens the answer."""

    text: Words | None = Field(None, description="Words that describe the picture", examples=["a cat on a sofa"])
    image: PictureUrl | None = None
    like: Name | Annotated[list[Name], Field(min_length=1, max_length=32)] | LikeExamples | None = Field(
        None, description="Key or point id of an image of the collection, several, or positive and negative ones"
    )
    mix: Annotated[list[MixPart], Field(min_length=1, max_length=16)] | None = None
    vector: Annotated[list[float], AfterValidator(_finite), Field(max_length=65536)] | None = None
    limit: int = Field(12, ge=1, le=_LIMITS.max_hits)
    offset: int = Field(0, ge=0, le=_LIMITS.max_offset)
    filter: dict[str, Any] | None = Field(
        None,
        description="Qdrant's own filter",
        examples=[{"must": [{"key": "source", "match": {"value": "photos"}}]}],
    )
    score_threshold: FiniteFloat | None = None
    diverse: bool | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = False
    collapse_duplicates: bool = True
    with_vectors: bool = False


class SearchHit(BaseModel):
    """One image. `thumbnail` is a path on this server, or null where the image's folder is not known here."""

    id: str
    score: float
    key: str
    uri: str
    payload: dict[str, Any]
    thumbnail: str | None
    vector: list[float] | None = None


class SearchAnswer(BaseModel):
    """Hits, best first; `next_offset` is null where there are no more."""

    object: Literal["list"] = "list"
    collection: str
    model: str
    space_id: str
    hits: list[SearchHit]
    next_offset: int | None


class FacetRequest(Request):
    """Fields to count; without them, those that are worth filtering by."""

    fields: Annotated[list[Name], Field(max_length=16)] | None = None
    filter: dict[str, Any] | None = None
    limit: int = Field(20, ge=1, le=100)


class FacetValue(BaseModel):
    """A value and how many images have it."""

    value: str | int | bool
    count: int


class Facet(BaseModel):
    """The most frequent values of one field."""

    field: str
    values: list[FacetValue]


class FacetAnswer(BaseModel):
    """Counts within the filter."""

    facets: list[Facet]


class CollectionAnswer(BaseModel):
    """The collection that is searched."""

    name: str
    images: int
    model: str
    space_id: str
    thumbnails: bool


class Health(BaseModel):
    """Whether the model answers."""

    status: Literal["ok", "stuck"]
    model: str
