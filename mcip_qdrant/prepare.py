"""Reference -> pixels ready for the encoder: read, decode, preprocess. One image at a time, in whatever thread or process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from mcip_qdrant.decode import DecodeLimits, decode
from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.manifest import Preprocess
from mcip_qdrant.points import DecodeMode, PreparedImage
from mcip_qdrant.preprocess import preprocess
from mcip_qdrant.read import FileState, read_image
from mcip_qdrant.report import DeadLetter, Stage


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the pixels: where sources lie, the model's preprocessing, limits, and how JPEGs are decoded."""

    roots: Mapping[str, Path]
    preprocess: Preprocess
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    decode: DecodeMode = "exact"


@dataclass(frozen=True, slots=True)
class SameBytes:
    """The file holds the very bytes that its point was made from; found only by reading it."""

    ref: ImageRef
    state: FileState


Prepared: TypeAlias = PreparedImage | SameBytes | DeadLetter
Clock: TypeAlias = Callable[[Stage], AbstractContextManager[None]]
Prepare: TypeAlias = Callable[[ImageRef, Recipe, str | None, Clock], Prepared]
"""The signature of `prepare`, for those who run it elsewhere (in a child process, say)."""


def prepare(ref: ImageRef, recipe: Recipe, known_sha256: str | None, timed: Clock) -> Prepared:
    """Prepare one image. What is wrong with it comes back as a dead letter, never as an exception.

    Args:
        known_sha256: digest of the bytes that the point was made from; the same bytes are not decoded again.
        timed: adds the time spent inside to a stage.
    """
    try:
        with timed("read"):
            read = read_image(recipe.roots[ref.source], ref, max_bytes=recipe.limits.max_bytes)
        if known_sha256 is not None and read.sha256 == known_sha256:
            return SameBytes(ref, read.state)
        with timed("decode"):
            scaled_for = recipe.preprocess if recipe.decode == "scaled" else None
            image = decode(read.data, limits=recipe.limits, scaled_for=scaled_for)
            pixels = preprocess(image.rgb, recipe.preprocess)
    except ImageError as exc:
        return DeadLetter(ref.key, exc.reason, str(exc))
    except MemoryError:
        return DeadLetter(ref.key, Reason.OUT_OF_MEMORY, "not enough memory to decode it")
    return PreparedImage(ref, pixels, read.sha256, image.width, image.height, image.format, read.state)
