"""open_clip's own tokenizer -> `tokenizer.json` in the bundle, proven id by id on the golden texts."""

from __future__ import annotations

import hashlib
import json
import logging
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, get_clean_fn

from mcip_qdrant.errors import ExportError
from mcip_qdrant.export import clip_bpe
from mcip_qdrant.export.golden_texts import GOLDEN_TEXTS
from mcip_qdrant.manifest import Cleaning, TokenizerConfig
from mcip_qdrant.tokenizer import Tokenizer, exact_backend

logger = logging.getLogger(__name__)

FILE: Final = "tokenizer.json"
# Special tokens written out inside a text: the likeliest place for a difference.
_MARKERS: Final = (
    *("<start_of_text>", "<end_of_text>", "<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>"),
    *("<bos>", "<eos>", "<extra_id_0>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
)
_LITERALS: Final = tuple(f"{marker} a {marker} b{marker}c !{marker}{marker} {marker.upper()}" for marker in _MARKERS)
_CLEANINGS: Final[tuple[Cleaning, ...]] = ("lower", "whitespace", "canonicalize")


def export_tokenizer(reference: Any, directory: Path, *, vocab_size: int) -> TokenizerConfig:
    """Write `tokenizer.json` into `directory`, giving ids identical to those of `reference`.

    Args:
        reference: open_clip's tokenizer of the model, see `load_reference_tokenizer`.
        directory: the bundle's folder; it exists.
        vocab_size: rows of the model's token embedding. A tokenizer that knows fewer tokens is only warned about.

    Raises:
        ExportError: this kind of tokenizer or one of its options is not supported, it can produce ids the model has no
            row for, or the written file gave other ids than `reference`.
    """
    cleaning = _cleaning(reference)
    length = reference.context_length
    if not length:
        raise ExportError("tokenizer: the model's configuration has no context length")
    source = _clip(reference, cleaning) if isinstance(reference, SimpleTokenizer) else _transformers(reference)
    probes = [[int(number) for number in row] for row in reference(list(GOLDEN_TEXTS))]
    _check_vocabulary(source.vocabulary, {number for row in probes for number in row}, cleaning, vocab_size)
    pad = next((token for token, number in source.vocabulary.items() if number == source.pad_id), "<pad>")
    source.backend.enable_truncation(length, direction=source.truncation_side)
    source.backend.enable_padding(length=length, pad_id=source.pad_id, pad_token=pad, direction=source.padding_side)
    path = directory / FILE
    source.backend.save(str(path), pretty=False)
    described = {
        **source.trained,
        "vocabulary": source.vocabulary,
        "cleaning": cleaning,
        "context_length": length,
        "pad_id": source.pad_id,
        "probes": probes,
    }
    config = TokenizerConfig(
        context_length=length,
        cleaning=cleaning,
        pad_id=source.pad_id,
        vocab_size=vocab_size,
        digest=hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        file=FILE,
    )
    _prove(reference, Tokenizer.open(directory, config), [*GOLDEN_TEXTS, *_LITERALS])
    return config


@dataclass(frozen=True, slots=True)
class _Source:
    """A tokenizer to write, and what identifies it independently of how a library happens to write it."""

    backend: tokenizers.Tokenizer
    vocabulary: dict[str, int]
    trained: dict[str, Any]
    pad_id: int
    truncation_side: str = "right"
    padding_side: str = "right"


def _clip(reference: Any, cleaning: Cleaning) -> _Source:
    merges = sorted(reference.bpe_ranks, key=reference.bpe_ranks.__getitem__)
    backend = clip_bpe.build(reference, cleaning)
    # Described by the reference's own tables: those in `backend` contain the merge chains of the markers.
    return _Source(backend, reference.encoder, {"type": "BPE", "merges": merges}, pad_id=0)


def _transformers(reference: Any) -> _Source:
    wrapped = _fast_tokenizer(reference)
    backend = exact_backend(wrapped.backend_tokenizer.to_str())
    return _Source(
        backend,
        backend.get_vocab(with_added_tokens=True),
        _trained(backend),
        wrapped.pad_token_id,
        wrapped.truncation_side,
        wrapped.padding_side,
    )


def _cleaning(reference: Any) -> Cleaning:
    if isinstance(reference, SigLipTokenizer):
        return "canonicalize"  # fixed in its code, it has no `clean_fn`
    function = getattr(reference, "clean_fn", None)
    for name in _CLEANINGS:
        if function is get_clean_fn(name):
            return name
    raise ExportError(f"tokenizer: cleaning of {type(reference).__name__} is none of {', '.join(_CLEANINGS)}")


def _fast_tokenizer(reference: Any) -> Any:
    """The transformers tokenizer inside, if all that open_clip adds to it can be expressed in `tokenizer.json`."""
    if not isinstance(reference, HFTokenizer | SigLipTokenizer):
        raise ExportError(f"tokenizer: {type(reference).__name__} is not a tokenizer that can be exported")
    mode = getattr(reference, "tokenizer_mode", "")
    if mode:
        raise ExportError(f"tokenizer: tokenizer_mode {mode!r} is not supported")
    if getattr(reference, "strip_sep_token", False):
        raise ExportError("tokenizer: strip_sep_token (separator ids replaced by 0) is not supported")
    wrapped = reference.tokenizer
    if getattr(wrapped, "backend_tokenizer", None) is None:
        raise ExportError(
            f"tokenizer: {type(wrapped).__name__} is written in Python and has no tokenizer.json form; "
            "convert it to a fast tokenizer first"
        )
    if getattr(wrapped, "split_special_tokens", False):
        raise ExportError("tokenizer: split_special_tokens is not supported")
    if wrapped.pad_token_id is None:
        raise ExportError("tokenizer: no padding token, so open_clip itself cannot batch texts with it")
    return wrapped


def _trained(backend: Any) -> dict[str, Any]:
    """What training produced, in one form whatever version of `tokenizers` wrote it: type, scores or merges."""
    model = json.loads(backend.to_str())["model"]
    merges = model.get("merges", [])
    vocabulary = model["vocab"]
    return {
        "type": model.get("type"),
        "merges": [merge.split(" ") if isinstance(merge, str) else merge for merge in merges],
        "scores": [score for _, score in vocabulary] if isinstance(vocabulary, list) else [],
        "unknown": model.get("unk_id", model.get("unk_token")),
    }


def _check_vocabulary(vocabulary: dict[str, int], seen: set[int], cleaning: Cleaning, vocab_size: int) -> None:
    plain = vocabulary
    if cleaning == "canonicalize":
        # Sentinels such as "<extra_id_0>" lie past the model's rows by design; cleaned text has no "<" to spell them.
        plain = {token: number for token, number in vocabulary.items() if not set(token) & set(string.punctuation)}
    largest = max(*plain.values(), *seen)
    if largest >= vocab_size:
        raise ExportError(
            f"tokenizer: ids go up to {largest}, but the model's vocabulary has {vocab_size} tokens "
            f"(0 to {vocab_size - 1}): this is not the tokenizer that the model was trained with"
        )
    if max(vocabulary.values()) + 1 < vocab_size:
        logger.warning("tokenizer knows ids up to %d, the model has %d tokens", max(vocabulary.values()), vocab_size)


def _prove(reference: Any, written: Tokenizer, texts: list[str]) -> None:
    expected = reference(texts).numpy()
    equal = (written.encode(texts).ids == expected).all(axis=1)
    if not equal.all():
        text = texts[int(equal.argmin())]
        raise ExportError(f"tokenizer: {FILE} gives other ids than open_clip's own tokenizer for {text!r}")
