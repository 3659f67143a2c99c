"""The texts of the golden set: they probe a tokenizer's behaviour at export and a text tower on every machine.

Changing one of them changes every `space_id`. For the same reason they keep away from whatever moves with the versions
of Python, ftfy or Unicode: no mojibake, no young characters.
"""

from __future__ import annotations

from typing import Final

_CAPTIONS = (
    "a photo of a cat",
    "two dogs playing in the snow",
    "a red double-decker bus on a rainy street at night",
    "an aerial photograph of a harbour with sailing boats",
    "a plate of spaghetti with tomato sauce and basil",
    "A black-and-white portrait of an old man with a beard.",
    "a child's drawing of a house, a tree and the sun",
    "close-up of a bee on a purple flower",
    "the Eiffel Tower seen from below",
    "a wooden chair in an empty white room",
    "people waiting on the platform of an underground station",
    "a low-resolution screenshot of a computer game",
    "mountains reflected in a lake at sunrise",
    "an oil painting of a ship in a storm",
    "a vintage car parked in front of a diner",
    "a pair of running shoes, side view, white background",
    "handwritten letter in blue ink",
    "x-ray image of a human hand",
    "a map of the city centre",
    "logo with the letters ABC in a circle",
)
_SHORT = ("cat", "Zebra", "1", "?", "a", "pneumonoultramicroscopicsilicovolcanoconiosis", "under_score_name", "RGB")
_PUNCTUATION = (
    "it's the dog's ball, they're sure we've seen it; I'll say he'd know, I'm certain you can't",
    "IT'S THE DOG'S BALL, THEY'RE SURE WE'VE SEEN IT",
    "price: $1,299.99 (20% off!) #sale @shop",
    "file_name-2024.01.15_final(2).tar.gz",
    "what?! no... yes -- maybe; [brackets] {braces} <angles>",
    "\"quoted\" 'single' `backtick` ~tilde^ | a/b\\c",
    "e-mail someone@example.org or see https://example.org/a?b=c&d=e#f",
    "3.14159 2,718 1e-9 0x1F 42nd 1990s",
)
_MARKUP = (
    "salt &amp; pepper",
    "salt &amp;amp; pepper",
    "fish &lt;b&gt;and&lt;/b&gt; chips &copy; 1999 &eacute;t&eacute;",
    "&#9731; snowman &#x2603; &nbsp; twice",
    "<start_of_text> literal markers <end_of_text> inside",
    "</s> <pad> <unk> other people's markers",
)
_SCRIPTS = (
    "eine Straße in München bei schönem Wetter",
    "un café près de l'église, à l'été",
    "кошка сидит на окне",
    "μια γάτα στον ήλιο",
    "一只猫坐在窗台上",
    "窓辺に座っている猫の写真",
    "창가에 앉아 있는 고양이",
    "قطة تجلس على النافذة",
    "חתול יושב על החלון",
    "खिड़की पर बैठी बिल्ली",
    "แมวนั่งอยู่บนหน้าต่าง",
    "con mèo ngồi trên cửa sổ",
    "٣ قطط و ४ कुत्ते ½ Ⅳ",
    "ＦＵＬＬ　ＷＩＤＴＨ ﬁne ligature",
)
_SYMBOLS = (
    "a dog \N{DOG FACE} and a cat \N{CAT FACE}",
    "family \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL} on the beach",
    "thumbs up \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}",
    "cafe\N{COMBINING ACUTE ACCENT} nai\N{COMBINING DIAERESIS}ve",
    "∑ x² ≤ √2 → ∞ ± 5 °C €10 £20 ¥30",
)
_LAYOUT = (
    "  tabs\tand\nnew lines   and \u00a0 wide\u2003spaces  ",
    "a very long caption that goes on " + "and on with one more detail about the picture " * 12,
    "no" * 150,
)

GOLDEN_TEXTS: Final[tuple[str, ...]] = (
    *_CAPTIONS,
    *_SHORT,
    *_PUNCTUATION,
    *_MARKUP,
    *_SCRIPTS,
    *_SYMBOLS,
    *_LAYOUT,
)
