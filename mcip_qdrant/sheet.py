"""A contact sheet: the hits of one search as labelled thumbnails on one PNG, so that a person can look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from mcip_qdrant.errors import ImageError, InvalidQueryError
from mcip_qdrant.hit import Hit
from mcip_qdrant.thumbnail import picture_bytes, small_picture

_TILE = 240
_LABEL = 40
_GAP = 12
_HEADER = 44
_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 34), (215, 215, 210)


SHOWN: Final = 200
"""At most so many hits are drawn."""


def contact_sheet(
    title: str,
    hits: Sequence[Hit],
    query: Image.Image | None = None,
    roots: Mapping[str, Path] | None = None,
) -> Image.Image:
    """Draw hits in reading order, each with rank, score and name; the query picture, if any, comes first.

    A hit whose file cannot be read shows as an empty tile that says why.

    Args:
        hits: the first `SHOWN` of them are drawn.
        roots: source name -> its folder here. None: files are read where their uri says.
    """
    tiles: list[tuple[str, Image.Image | str]] = [("query", query)] if query is not None else []
    tiles += [
        (f"{rank}.  {hit.score:.3f}  {hit.key.rsplit('/', 1)[-1]}", _picture(hit, roots))
        for rank, hit in enumerate(hits[:SHOWN], 1)
    ]
    columns = min(5, max(1, math.ceil(math.sqrt(len(tiles)))))
    rows = max(1, math.ceil(len(tiles) / columns))
    width = columns * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + rows * (_TILE + _LABEL + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _fitting(draw, title, 20, width - 2 * _GAP), _INK, ImageFont.load_default(20))
    for index, (label, picture) in enumerate(tiles):
        left = _GAP + index % columns * (_TILE + _GAP)
        top = _HEADER + _GAP + index // columns * (_TILE + _LABEL + _GAP)
        draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), fill=_FAINT)
        if isinstance(picture, str):
            draw.text((left + _GAP, top + _TILE // 2), picture, _INK, ImageFont.load_default(14))
        else:
            thumbnail = picture.copy()
            thumbnail.thumbnail((_TILE, _TILE))
            sheet.paste(thumbnail, (left + (_TILE - thumbnail.width) // 2, top + (_TILE - thumbnail.height) // 2))
        draw.text((left, top + _TILE + 6), _fitting(draw, label, 14, _TILE), _INK, ImageFont.load_default(14))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet; the suffix decides the format.

    Raises:
        InvalidQueryError: unknown suffix, or the file cannot be written.
    """
    try:
        sheet.save(path)
    except (OSError, ValueError) as exc:
        raise InvalidQueryError(f"--sheet {path}: cannot be written: {exc}") from exc


def _picture(hit: Hit, roots: Mapping[str, Path] | None) -> Image.Image | str:
    try:
        return small_picture(picture_bytes(hit, roots), side=_TILE)
    except ImageError as exc:
        return f"cannot be shown: {exc.reason}"


def _fitting(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    text = " ".join(text.split())
    font = ImageFont.load_default(size)
    while len(text) > 4 and draw.textlength(text, font) > width:
        text = text[:-2].rstrip("…") + "…"
    return text
