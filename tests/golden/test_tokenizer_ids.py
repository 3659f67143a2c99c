"""Ids equal to those of open_clip's own tokenizer, text by text: there is no such thing as nearly the same id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from tokenizer_texts import hard_texts, write_siglip_style

from mcip_qdrant.export.golden_texts import GOLDEN_TEXTS
from mcip_qdrant.export.tokenizer import export_tokenizer
from mcip_qdrant.manifest import Cleaning
from mcip_qdrant.tokenizer import Tokenizer, clean

CLEANINGS: tuple[Cleaning, ...] = ("lower", "whitespace", "canonicalize")


@dataclass(frozen=True)
class Pair:
    reference: Any
    ours: Tokenizer

    def assert_same(self, texts: list[str]) -> None:
        expected = self.reference(texts).numpy()
        got = self.ours.encode(texts).ids
        assert got.shape == expected.shape
        differing = [texts[index] for index in np.flatnonzero((got != expected).any(axis=1))]
        assert not differing, f"{len(differing)} of {len(texts)} differ, first {differing[0]!r}"


def _pair(reference: Any, folder: Path, vocab_size: int) -> Pair:
    folder.mkdir(parents=True, exist_ok=True)
    return Pair(reference, Tokenizer.open(folder, export_tokenizer(reference, folder, vocab_size=vocab_size)))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip_style(tmp_path_factory.mktemp("siglip-style"), size=1000)


@pytest.fixture(scope="module")
def clip_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(SimpleTokenizer(), tmp_path_factory.mktemp("clip"), 49408)


@pytest.fixture(scope="module")
def siglip_pair(siglip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = HFTokenizer(str(siglip_folder), context_length=64, clean="canonicalize")
    return _pair(reference, tmp_path_factory.mktemp("siglip"), 1000)


def test_the_texts_are_many_and_varied() -> None:
    texts = hard_texts(2_000)
    assert len(texts) >= 2_000
    assert len(set("".join(texts))) > 5_000
    assert len(GOLDEN_TEXTS) == len(set(GOLDEN_TEXTS)) == 64


@pytest.mark.parametrize("how", CLEANINGS)
def test_cleaning_equals_open_clip(how: Cleaning) -> None:
    reference = get_clean_fn(how)
    assert [clean(text, how) for text in hard_texts(2_000)] == [reference(text) for text in hard_texts(2_000)]


def test_clip(clip_pair: Pair) -> None:
    clip_pair.assert_same(hard_texts(2_500))


def test_siglip_style(siglip_pair: Pair) -> None:
    siglip_pair.assert_same(hard_texts(2_500))


def test_every_character_of_unicode_is_split_alike(clip_pair: Pair) -> None:
    """Also those that `tokenizers`' own regular expressions take for unassigned."""
    characters = [chr(code) for code in range(0x20, 0x323B0) if not 0xD800 <= code <= 0xDFFF]
    texts = ["1".join(characters[start : start + 8]) for start in range(0, len(characters), 8)]
    for start in range(0, len(texts), 4096):
        clip_pair.assert_same(texts[start : start + 4096])


@pytest.mark.parametrize("length", [3, 16, 32, 200])
def test_other_context_lengths(tmp_path: Path, siglip_folder: Path, length: int) -> None:
    _pair(SimpleTokenizer(context_length=length), tmp_path / "clip", 49408).assert_same(hard_texts(500))
    siglip = HFTokenizer(str(siglip_folder), context_length=length, clean="canonicalize")
    _pair(siglip, tmp_path / "siglip", 1000).assert_same(hard_texts(500))


@pytest.mark.parametrize("how", ["lower", "whitespace"])
def test_siglip_style_with_punctuation(tmp_path: Path, siglip_folder: Path, how: str) -> None:
    """Special tokens spelled out in the text survive these cleanings."""
    _pair(HFTokenizer(str(siglip_folder), context_length=64, clean=how), tmp_path, 1000).assert_same(hard_texts(2_000))


def test_clip_byte_pairs_canonicalized(tmp_path: Path) -> None:
    _pair(SimpleTokenizer(clean="canonicalize"), tmp_path, 49408).assert_same(hard_texts(2_000))


def test_cut_texts_are_known(clip_pair: Pair, siglip_pair: Pair) -> None:
    texts = hard_texts(2_000)
    clip, siglip = clip_pair.reference, siglip_pair.reference
    cut = [len(clip.encode(text)) + 2 > 77 for text in texts]
    assert clip_pair.ours.encode(texts).truncated.tolist() == cut
    assert sum(cut) > 20
    ids = siglip.tokenizer([clean(text, "canonicalize") for text in texts]).input_ids
    assert siglip_pair.ours.encode(texts).truncated.tolist() == [len(row) > 64 for row in ids]


@pytest.mark.parametrize(
    "text",
    [
        "<start_of_text>",
        "a<end_of_text>",
        "!<start_of_text>",
        "<START_OF_TEXT>x",
        "<end_of_text><start_of_text><end_of_text>!",
        "<ſtart_of_text>",
        "''s don''t",
        "x'ſ",
        "\u0345",
        "&lt;&#xFB06;art",
    ],
)
def test_clip_where_ready_made_tokenizers_differ(clip_pair: Pair, text: str) -> None:
    clip_pair.assert_same([text])


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=120),
        st.text(alphabet="'sStTlLdD<>_ aſ1!&;", max_size=60),
        st.lists(st.sampled_from(hard_texts(1_000)), max_size=6).map("".join),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
@example(texts=["'ſ <ſtart_of_text>", ""])
def test_any_text_clip(clip_pair: Pair, texts: list[str]) -> None:
    clip_pair.assert_same(texts)


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS)
@example(texts=["\ufb05_\uff1c</s>", ""])
def test_any_text_siglip_style(siglip_pair: Pair, texts: list[str]) -> None:
    siglip_pair.assert_same(texts)
