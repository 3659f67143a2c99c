"""Thousands of texts that tokenizers like to disagree about, the same ones in every run; and a SigLIP-style tokenizer."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

from mcip_qdrant.export.golden_texts import GOLDEN_TEXTS
from mcip_qdrant.tokenizer import clean

# First code point and size of blocks: scripts, digits of other scripts, symbols, emoji, young additions to Unicode.
_BLOCKS = (
    *((0x00A0, 96), (0x0100, 256), (0x0250, 96), (0x02B0, 80), (0x0300, 112), (0x0370, 144), (0x0400, 256)),
    *((0x0530, 96), (0x0590, 112), (0x0600, 256), (0x0700, 80), (0x0870, 48), (0x0900, 128), (0x0980, 128)),
    *((0x0B80, 128), (0x0C00, 128), (0x0E00, 128), (0x0E80, 128), (0x0F00, 256), (0x1000, 160), (0x10A0, 96)),
    *((0x1100, 256), (0x1200, 256), (0x13A0, 96), (0x1680, 32), (0x1780, 128), (0x1800, 176), (0x1C80, 16)),
    *((0x1D00, 256), (0x1E00, 256), (0x1F00, 256), (0x2000, 112), (0x2070, 48), (0x20A0, 112), (0x2100, 144)),
    *((0x2190, 112), (0x2460, 160), (0x2600, 256), (0x2C00, 96), (0x3000, 64), (0x3040, 192), (0x3100, 48)),
    *((0x3200, 256), (0x3400, 64), (0x4E00, 512), (0x9FF0, 16), (0xA640, 96), (0xA720, 224), (0xAB30, 64)),
    *((0xAC00, 512), (0xE000, 32), (0xF900, 128), (0xFB00, 80), (0xFE00, 16), (0xFE30, 80), (0xFF00, 240)),
    *((0xFFF0, 14), (0x10000, 128), (0x10400, 80), (0x10A60, 32), (0x11DE0, 16), (0x12400, 128), (0x16A40, 48)),
    *((0x16D40, 64), (0x1D400, 256), (0x1D7CE, 50), (0x1E900, 96), (0x1F100, 256), (0x1F300, 512), (0x1F900, 256)),
    *((0x20000, 64), (0x2EBF0, 32), (0x31350, 32), (0x323B0, 32), (0xE0000, 128), (0x10FF00, 32)),
)
_MARKERS = ("<start_of_text>", "<end_of_text>", "<START_of_Text>", "<ſtart_of_text>", "</s>", "<pad>", "<unk>")
_PIECES = (
    *("a", "cat", "Photo", "of", "the", "STRASSE", "straße", "ﬆart", "İstanbul", "ıI", "K", "Å", "x\u0345", "ς Σ"),
    *(
        "'s",
        "'S",
        "'ſ",
        "'LL",
        "'Re",
        "’s",
        "''ve",
        "'d'm",
        "'",
        "''",
        '"',
        "!",
        "?!",
        "...",
        "…",
        "_",
        "a_b",
        "-",
        "—",
    ),
    *("&amp;", "&amp;amp;", "&lt;b&gt;", "&#39;s", "&nbsp;", "&#x1F600;", "&#xD800;", "&#xFB06;", "&bogus;", "&#0;"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\x1c", "\x1f", "\x85"),
    *("\x00", "\x07", "\x1b[31m", "\x7f", "\ufeff", "\ufffd", "\u00ad", "\u202e", "\ue000", "\U0010fffd", "\ud800"),
    *("0", "42", "3.14", "1,000", "½", "Ⅳ", "²", "٣", "४", "๙", "𝟗", "①", "㊿"),
    *("👍🏽", "👨‍👩‍👧‍👦", "❤️", "🇵🇱", "1️⃣", "🏳️‍🌈", "🫠"),
    *("schÃ¶n", "â€™s", "Ã©tÃ©", "â€œquotedâ€\x9d", "ðŸ˜€", "ï¬\x81ne"),
    *("e\u0301", "n\u0303", "Z̷̢a̶l̵g̸o̴", "क्षि", "กำ", "한국", "한", "猫の写真", "▁", "▁cat", "</w>", "Ġ", "##ing"),
    *_MARKERS,
)


def hard_texts(count: int) -> list[str]:
    """At least `count` texts, beginning with the golden ones, no two equal."""
    dice = random.Random(20240)
    texts = [
        *GOLDEN_TEXTS,
        "",
        " ",
        "\t\n ",
        "\u3000",
        "\u200b",
        "a" * 400,
        "word " * 300,
        "1" * 200,
        "👍" * 120,
        "!" * 300,
    ]
    texts += _PIECES
    texts += [left + right for left in _MARKERS for right in (*_MARKERS, "!", "a", "1", "'s", " ")]
    texts += [left + right for left in ("!", "a", "1", "'s", " ", "&", "<") for right in _MARKERS]
    for first, size in _BLOCKS:
        characters = [chr(code) for code in range(first, first + size) if unicodedata.category(chr(code)) != "Cs"]
        texts += ["".join(characters[start : start + 16]) for start in range(0, len(characters), 16)]
        texts += ["".join(dice.choices(characters, k=6)) + dice.choice(_PIECES) for _ in range(4)]
    while len(texts) < count * 5 // 4:
        texts.append(dice.choice(("", " ")).join(dice.choices(_PIECES, k=dice.randint(2, 60))))
    return list(dict.fromkeys(texts))


def write_siglip_style(folder: Path, *, size: int = 1000) -> Path:
    """A folder as `timm/ViT-B-16-SigLIP` offers it: T5-style unigram pieces, `</s>` (id 1) for end and padding alike."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    markers = _, end, unknown = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=markers, unk_token=unknown, show_progress=False)
    words = " ".join(clean(text, "canonicalize") for text in hard_texts(1_000)).split()
    # Characters outside the trained alphabet must exist: they become the unknown token.
    trained.train_from_iterator([word for word in words if max(word) < "\u0600"] * 3, trainer)
    pieces = [(str(piece), float(score)) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    made = transformers.T5TokenizerFast(vocab=pieces[:size], extra_ids=0, pad_token=end)
    made.save_pretrained(folder)
    return folder
