"""Text -> token ids, as open_clip's own tokenizer would give them, without open_clip.

Cleaning happens here (the `tokenizers` library knows neither ftfy nor HTML entities); splitting, vocabulary, truncation
and padding travel inside the bundle's `tokenizer.json`.
"""

from __future__ import annotations

import hashlib
import html
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ftfy
import numpy as np
import numpy.typing as npt
import tokenizers
import tokenizers.models

from mcip_qdrant.errors import BundleError, InvalidQueryError
from mcip_qdrant.manifest import Cleaning, TokenizerConfig

# "_" separates words before punctuation disappears, so it must not be deleted with the rest.
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, "") | {"_": " "})


@dataclass(frozen=True, slots=True)
class Tokens:
    """One batch of texts.

    `ids` is int64 `[B, L]`, ready for the textual graph; `truncated` is bool `[B]`: the end of that text did not fit
    into L ids.
    """

    ids: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]


def _basic(text: str) -> str:
    # Twice, because web captions often arrive escaped twice ("&amp;amp;").
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _whitespace(text: str) -> str:
    return " ".join(_basic(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    return " ".join(_basic(text).translate(_PUNCTUATION).lower().split())


_CLEANERS: Mapping[str, Callable[[str], str]] = {
    "lower": _lower,
    "whitespace": _whitespace,
    "canonicalize": _canonicalize,
}


def clean(text: str, how: Cleaning) -> str:
    """Text as the vocabulary sees it: mojibake repaired, entities resolved, single spaces, then by `how`.

    `whitespace` stops there, `lower` adds lower case, `canonicalize` adds lower case and drops ASCII punctuation.
    The result may be empty.
    """
    return _CLEANERS[how](text)


def exact_backend(text: str) -> Any:
    """The tokenizer in a `tokenizer.json`, with the scores of a unigram vocabulary exactly as they stand there.

    The library's own reader returns about one score in eight a unit in the last place off, and where two ways to split a
    text are equally good, that decides which ids come out.
    """
    backend = tokenizers.Tokenizer.from_str(text)
    if isinstance(backend.model, tokenizers.models.Unigram):
        model = json.loads(text)["model"]
        pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
        backend.model = tokenizers.models.Unigram(pieces, model.get("unk_id"), model.get("byte_fallback", False))
    return backend


class Tokenizer:
    """Ids identical to those of the tokenizer that the model was exported with. Safe to share between threads."""

    def __init__(self, backend: Any, config: TokenizerConfig) -> None:
        self._backend = backend
        self._config = config

    @classmethod
    def open(cls, directory: Path, config: TokenizerConfig) -> Self:
        """Read `config.file` in the bundle `directory`.

        Raises:
            BundleError: the file is missing, was altered, is not a tokenizer, or was not made for `config`.
        """
        path = directory / config.file
        try:
            # Read here, because `tokenizers` does not tell a missing file from a damaged one.
            data = path.read_bytes()
        except OSError as exc:
            raise BundleError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
        # Other ids are still ids: nothing later would notice.
        if hashlib.sha256(data).hexdigest() != config.sha256:
            raise BundleError(f"{path} was altered after the export (SHA-256 differs); copy it again")
        try:
            backend = exact_backend(data.decode())
        except Exception as exc:  # `tokenizers` raises bare Exception
            raise BundleError(f"{path}: not a tokenizer file: {exc}") from exc
        cut, pad = backend.truncation or {}, backend.padding or {}
        found = (cut.get("max_length"), pad.get("length"), pad.get("pad_id"))
        wanted = (config.context_length, config.context_length, config.pad_id)
        if found != wanted:
            raise BundleError(f"{path}: (cut at, pad to, pad id) is {found}, the manifest says {wanted}")
        return cls(backend, config)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Clean and tokenize; a text that is empty after cleaning gives a row of special ids only.

        Raises:
            InvalidQueryError: a text leads to an id past the model's vocabulary (a sentinel spelled out in it).
            TypeError: `texts` is one string instead of a sequence of them.
        """
        if isinstance(texts, str):
            raise TypeError("encode() takes a sequence of texts, not one string")
        cleaned = [clean(text, self._config.cleaning) for text in texts]
        encodings = self._backend.encode_batch_fast(cleaned)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        ids = ids.reshape(len(cleaned), self._config.context_length)
        outside = (ids >= self._config.vocab_size).any(axis=1)
        if outside.any():
            raise InvalidQueryError(f"{texts[int(outside.argmax())]!r}: contains a token that the model has no row for")
        return Tokens(
            ids=ids,
            truncated=np.array([bool(encoding.overflowing) for encoding in encodings], dtype=np.bool_),
        )
