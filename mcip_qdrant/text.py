"""What counts as text."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """Whether a str can be written as UTF-8: it holds no half of a surrogate pair, which Python's str allows.

    Such halves come from file names that are not UTF-8 and from JSON escapes like `\\ud800`; no tokenizer, database or
    hash takes them.
    """
    return not any("\ud800" <= char <= "\udfff" for char in text)
