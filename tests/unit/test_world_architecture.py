"""The committed `local-dir:` folder is what the code writes, and its tokenizer knows every word of the world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mcip_qdrant.world.architecture import FOLDER, MODEL, VOCABULARY, write_architecture
from mcip_qdrant.world.archive import pictures
from mcip_qdrant.world.scenes import WorldSize


def test_the_committed_folder_is_what_the_code_writes(tmp_path: Path) -> None:
    assert write_architecture(tmp_path) == f"local-dir:{tmp_path}"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in FOLDER.iterdir())
    for name in names:
        assert json.loads((tmp_path / name).read_text()) == json.loads((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_every_caption_is_known_and_fits(tokenizer: Tokenizer) -> None:
    longest = 0
    for picture in pictures("train", seed=1, size=WorldSize(200, 1, 1)):
        for caption in picture.captions:
            tokens = tokenizer.encode(caption.text).tokens
            assert tokens == ["<start>", *caption.text.split(), "<end>"]
            longest = max(longest, len(tokens))
    assert longest <= MODEL["text_cfg"]["context_length"]


def test_clip_finds_the_end_of_a_text_by_its_largest_id(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a crimson circle").ids
    assert max(ids) == ids[-1] == len(VOCABULARY) - 1 == MODEL["text_cfg"]["vocab_size"] - 1
    assert tokenizer.encode("a crimson circle").tokens[2] == "<unk>"
