"""The runtime tokenizer: cleaning, fixed length, what was cut, damaged files. Built here from a vocabulary of a few words."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from mcip_qdrant.errors import BundleError, InvalidQueryError
from mcip_qdrant.manifest import Cleaning, TokenizerConfig
from mcip_qdrant.tokenizer import Tokenizer, clean

LENGTH = 5
PAD, END, UNKNOWN = 0, 1, 2
VOCABULARY = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN, "a": 3, "red": 4, "cat": 5, "&": 6}
CONFIG = TokenizerConfig(
    context_length=LENGTH, cleaning="lower", pad_id=PAD, vocab_size=len(VOCABULARY), digest="d" * 64, sha256="e" * 64
)


def opened(folder: Path, config: TokenizerConfig) -> Tokenizer:
    """Open the file as it is now, with a manifest that agrees on its digest."""
    digest = hashlib.sha256((folder / config.file).read_bytes()).hexdigest()
    return Tokenizer.open(folder, replace(config, sha256=digest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    backend = tokenizers.Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    backend.enable_truncation(LENGTH)
    backend.enable_padding(length=LENGTH, pad_id=PAD, pad_token="<pad>")  # noqa: S106
    backend.save(str(tmp_path / CONFIG.file))
    return tmp_path


def test_ids_are_int64_of_fixed_length(folder: Path) -> None:
    tokens = opened(folder, CONFIG).encode(["A red cat", "dog"])
    assert tokens.ids.dtype == np.int64
    assert tokens.ids.tolist() == [[3, 4, 5, END, PAD], [UNKNOWN, END, PAD, PAD, PAD]]
    assert tokens.truncated.dtype == np.bool_


def test_only_texts_that_lost_something_count_as_truncated(folder: Path) -> None:
    tokens = opened(folder, CONFIG).encode(["a a a", "a a a a", "a a a a a", "a " * 1000])
    assert tokens.truncated.tolist() == [False, False, True, True]
    assert tokens.ids[1:, -1].tolist() == [END, END, END]


def test_a_batch_is_no_different_from_single_texts(folder: Path) -> None:
    tokenizer = opened(folder, CONFIG)
    texts = ["a", "", "red cat", "a a a a a a", "red"]
    together = tokenizer.encode(texts)
    alone = [tokenizer.encode([text]) for text in texts]
    assert together.ids.tolist() == [one.ids[0].tolist() for one in alone]
    assert together.truncated.tolist() == [bool(one.truncated[0]) for one in alone]


def test_an_empty_text_gives_special_ids_only(folder: Path) -> None:
    tokens = opened(folder, CONFIG).encode(["", " \t\n"])
    assert tokens.ids.tolist() == [[END, PAD, PAD, PAD, PAD]] * 2
    assert not tokens.truncated.any()


def test_an_empty_batch_keeps_its_shape(folder: Path) -> None:
    tokens = opened(folder, CONFIG).encode([])
    assert tokens.ids.shape == (0, LENGTH)
    assert tokens.truncated.shape == (0,)


def test_one_string_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="sequence of texts"):
        opened(folder, CONFIG).encode("a red cat")


def test_the_manifest_decides_how_text_is_cleaned(folder: Path) -> None:
    kept = opened(folder, replace(CONFIG, cleaning="whitespace")).encode(["CAT &amp;"])
    dropped = opened(folder, replace(CONFIG, cleaning="canonicalize")).encode(["CAT &amp;"])
    assert kept.ids[0].tolist() == [UNKNOWN, 6, END, PAD, PAD]
    assert dropped.ids[0].tolist() == [5, END, PAD, PAD, PAD]


def test_a_token_past_the_vocabulary_is_the_query_s_fault(folder: Path) -> None:
    tokenizer = opened(folder, replace(CONFIG, vocab_size=6))
    assert tokenizer.encode(["a cat"]).ids.shape == (1, LENGTH)
    with pytest.raises(InvalidQueryError, match="cat & a"):
        tokenizer.encode(["a cat", "cat & a"])


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("whitespace", "  A \t Cat\n\u00a0\u3000of  MINE ", "A Cat of MINE"),
        ("lower", "  A \t Cat\n of  MINE ", "a cat of mine"),
        ("canonicalize", "  A-Cat's_photo, (2) !  ", "acats photo 2"),
        ("whitespace", "salt &amp;amp; pepper &#39;s", "salt & pepper 's"),
        ("lower", "&lt;B&gt; schÃ¶n", "<b> schön"),
        ("whitespace", "“curly” ﬁne ＦＵＬＬ", '"curly" fine FULL'),
        ("canonicalize", "?!...", ""),
        ("canonicalize", "…¿«»", "…¿«»"),
        ("lower", "\x1b[31mred\x1b[0m", "red"),
        ("lower", "lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("lower", "", ""),
    ],
)
def test_cleaning(how: Cleaning, text: str, expected: str) -> None:
    assert clean(text, how) == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"version": "1.0", "model": 3}', b"\x80\xff\x00", b"not json"],
    ids=["empty", "object", "list", "null", "bad model", "binary", "text"],
)
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / CONFIG.file).write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a tokenizer file"):
        opened(folder, CONFIG)


def test_a_file_cut_anywhere_is_damaged(folder: Path) -> None:
    whole = (folder / CONFIG.file).read_bytes().rstrip()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        (folder / CONFIG.file).write_bytes(whole[:size])
        with pytest.raises(BundleError, match=r"tokenizer\.json"):
            opened(folder, CONFIG)


def test_a_file_that_was_altered_is_refused(folder: Path) -> None:
    """Two words that changed places give a tokenizer as good as any: only the digest can tell."""
    before = (folder / CONFIG.file).read_text()
    config = replace(CONFIG, sha256=hashlib.sha256(before.encode()).hexdigest())
    (folder / CONFIG.file).write_text(before.replace('"red": 4', '"red": 5').replace('"cat": 5', '"cat": 4'))
    assert opened(folder, CONFIG).encode(["red"]).ids[0][0] == 5
    with pytest.raises(BundleError, match=r"tokenizer\.json was altered after the export"):
        Tokenizer.open(folder, config)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / CONFIG.file).unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read: No such file"):
        Tokenizer.open(folder, CONFIG)


@pytest.mark.parametrize(
    "config", [replace(CONFIG, context_length=6), replace(CONFIG, pad_id=1)], ids=["length", "pad"]
)
def test_a_file_made_for_another_manifest_is_refused(folder: Path, config: TokenizerConfig) -> None:
    with pytest.raises(BundleError, match="the manifest says"):
        opened(folder, config)


def test_neither_torch_nor_open_clip_is_imported() -> None:
    code = (
        "import sys, mcip_qdrant.tokenizer; print(*sorted({'torch', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_equally_good_splits_are_decided_as_before_saving(tmp_path: Path) -> None:
    """`no no no no` and `nono nono` have one score, until a reader changes a last digit; the library's own does."""
    drawn = random.Random(5)
    changed = 0
    for _ in range(100):
        no, on = -drawn.uniform(3, 9), -drawn.uniform(3, 9)
        pieces = [
            ("<pad>", 0.0),
            ("<unk>", -20.0),
            ("n", -12.0),
            ("o", -12.0),
            ("no", no),
            ("on", on),
            ("nono", no + no),
        ]
        made = tokenizers.Tokenizer(models.Unigram(pieces, 1))
        made.enable_truncation(40)
        made.enable_padding(length=40, pad_id=0, pad_token="<pad>")  # noqa: S106
        made.save(str(tmp_path / CONFIG.file))
        expected = made.encode("no" * 60).ids
        changed += tokenizers.Tokenizer.from_file(str(tmp_path / CONFIG.file)).encode("no" * 60).ids != expected
        ours = opened(tmp_path, replace(CONFIG, context_length=40)).encode(["no" * 60])
        assert ours.ids[0].tolist() == expected
    assert changed
