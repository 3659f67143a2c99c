"""What clients send to and get from `/v1/embeddings` and `/v1/models`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
)

from mcip_qdrant.server.schema_fields import LIMITS, PictureUrl, Request, Words


class _Embedding(Request):
    model: str | None = Field(None, description="Any name: the one model here answers, and says which it is")
    encoding_format: Literal["float", "base64"] | None = Field("float", description="base64: little-endian float32")
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
        Words | Annotated[list[Words], Field(min_length=1, max_length=LIMITS.max_texts)], BeforeValidator(_no_tokens)
    ]
    modality: Literal["text"] | None = "text"


class ImageEmbedding(_Embedding):
    """Pictures, in the form of infinity."""

    input: PictureUrl | Annotated[list[PictureUrl], Field(min_length=1, max_length=LIMITS.max_images)]
    modality: Literal["image"]


class PictureAddress(Request):
    """Where a message says its picture is: in the address itself."""

    url: PictureUrl


class TextPart(Request):
    """Words in a message."""

    type: Literal["text"]
    text: Words


class ImagePart(Request):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: PictureAddress


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
