"""CLIP's own byte-pair tokenizer (open_clip's `SimpleTokenizer`) rebuilt as a `tokenizers.Tokenizer`.

Three things need care, because the library's ready-made CLIP tokenizer gets each of them slightly wrong:

* Letters and digits are those of the `regex` module's Unicode version, not of the engine inside `tokenizers`: the
  classes are written out code point by code point, so later versions of either cannot move a word boundary.
* `regex.IGNORECASE` folds single characters ("ſ" is an "s", so "'ſ" is a suffix): written out for the same reason.
* The literal "<start_of_text>" inside a text is one id only where the pattern starts a match, so not behind
  punctuation. An added token would be cut out anywhere; a last-rank merge chain obeys the pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from mcip_qdrant.errors import ExportError

_WORD_END = "</w>"
_MARKERS = ("<start_of_text>", "<end_of_text>")
_SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_CLASSES = (r"[\p{L}]+", r"[\p{N}]", r"[^\s\p{L}\p{N}]+")


@lru_cache(maxsize=1)
def _every_character() -> str:
    return "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF)


@lru_cache(maxsize=64)
def _spelled_out(pattern: str) -> str:
    """A one-character pattern as explicit ranges, case folded the way `regex` does it."""
    ranges: list[list[int]] = []
    for character in regex.findall(pattern, _every_character(), flags=regex.IGNORECASE):
        if ranges and ord(character) == ranges[-1][1] + 1:
            ranges[-1][1] += 1
        else:
            ranges.append([ord(character)] * 2)
    return "[" + "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in ranges) + "]"


def _split_pattern() -> str:
    words = (*_MARKERS, *_SUFFIXES)
    literals = ("".join(_spelled_out(regex.escape(character)) for character in word) for word in words)
    classes = (_spelled_out(wanted.rstrip("+")) + "+" * wanted.endswith("+") for wanted in _CLASSES)
    return "|".join((*literals, *classes))


def _model(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> models.BPE:
    return models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END)


def _with_markers(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> models.BPE:
    """Let a whole marker end up as its one id by merges behind all trained ones.

    The steps of the chain get ids past the vocabulary. They never come out: the pattern puts "<" and a letter into one
    word only for a marker, and text in lower case has the marker's exact letters or (with "ſ") not even the chain's
    first step.
    """
    plain = _model(vocabulary, merges)
    vocabulary, merges = dict(vocabulary), list(merges)
    spare = len(vocabulary)
    for marker in _MARKERS:
        identifier = vocabulary.pop(marker)
        whole, *rest = (token.value for token in plain.tokenize(marker))
        for piece in rest:
            merges.append((whole, piece))
            whole += piece
            vocabulary[whole] = spare
            spare += 1
        vocabulary[whole] = identifier
    return _model(vocabulary, merges)


def _refuse_unknown(reference: Any, cleaning: str) -> None:
    if reference.reduction_fn is not None:
        raise ExportError("tokenizer: a reduction mask picks tokens at random; only plain truncation can be exported")
    if cleaning == "whitespace":
        # Markers in mixed case would leave the merge chain half done.
        raise ExportError("tokenizer: CLIP's byte pairs with cleaning 'whitespace' (case kept) are not supported")
    expected = "|".join((*_MARKERS, *_SUFFIXES, *_CLASSES))
    if reference.pat.pattern != expected or not reference.pat.flags & regex.IGNORECASE:
        raise ExportError(f"tokenizer: words are split by {reference.pat.pattern!r}, only {expected!r} is supported")
    ids: Iterable[int] = reference.encoder.values()
    if sorted(ids) != list(range(len(reference.encoder))):
        raise ExportError("tokenizer: the byte-pair vocabulary has a token twice, so its ids have gaps")


def build(reference: Any, cleaning: str) -> tokenizers.Tokenizer:
    """Rebuild open_clip's `SimpleTokenizer`; truncation and padding are left to the caller.

    Raises:
        ExportError: an option of the reference is set that `tokenizer.json` cannot express.
    """
    _refuse_unknown(reference, cleaning)
    merges = sorted(reference.bpe_ranks, key=reference.bpe_ranks.__getitem__)
    backend = tokenizers.Tokenizer(_with_markers(reference.encoder, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_split_pattern()), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = _MARKERS
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, reference.sot_token_id), (end, reference.eot_token_id)],
    )
    return backend
