"""Texts that are made to take long: refused before the tokenizer's cleaning spends minutes on them."""

from __future__ import annotations

import unicodedata
from itertools import groupby

import ftfy

from mcip_qdrant.errors import InvalidQueryError
from mcip_qdrant.server.settings import Limits


def refuse_bombs(text: str, limits: Limits) -> None:
    """Pass texts that are cleaned within about a second.

    * Cleaning goes line by line, and takes for an empty line as long as for many words.
    * Unicode normalization puts the marks on one letter in order; its time grows with the square of their number, and no other thread
      of the process runs meanwhile.

    Raises:
        InvalidQueryError: too many lines, or too many marks on one letter.
    """
    if text.count("\n") >= limits.max_text_lines:
        raise InvalidQueryError(f"a text must not have more than {limits.max_text_lines:,} lines")
    if len(text) <= limits.max_marks or (text.isascii() and "&" not in text):
        return
    # As it will be normalized: marks may be written as entities, or as bytes that were decoded wrongly.
    repaired = ftfy.fix_text(text, normalization=None)
    runs = groupby(repaired, key=lambda character: unicodedata.combining(character) > 0)
    if max((sum(1 for _ in run) for marks, run in runs if marks), default=0) > limits.max_marks:
        raise InvalidQueryError(f"a text must not have more than {limits.max_marks:,} combining marks in a row")
