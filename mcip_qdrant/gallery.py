"""Hits as a grid of thumbnails for notebooks: one piece of HTML that loads nothing and runs nothing."""

from __future__ import annotations

import base64
import html
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mcip_qdrant.errors import ImageError
from mcip_qdrant.hit import Hit
from mcip_qdrant.thumbnail import picture_bytes, thumbnail

SIDE: Final = 176
"""Longer side of a thumbnail, in pixels. Its JPEG stays below 40 kB, whatever it shows."""

SHOWN: Final = 60
"""At most so many hits are drawn, so that the notebook that keeps the output stays small."""

_LONGEST_NAME = 300
_TURNS_AROUND = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Only inherited and see-through colours, so that it fits every theme; only inline styles, because notebooks drop style sheets from
# outputs that they do not trust. The classes keep MathJax from typesetting a name with dollar signs.
_GRID = (
    '<div class="mathjax_ignore tex2jax_ignore" role="list" aria-label="{}" style="display:flex;flex-wrap:wrap;gap:14px;'
    'padding:4px 0;color:inherit;font:13px/1.35 system-ui,sans-serif">'
)
_ITEM = f'<figure role="listitem" style="margin:0;width:{SIDE}px">'
_FRAME = (
    f"width:{SIDE}px;height:{SIDE}px;box-sizing:border-box;display:flex;align-items:center;justify-content:center;"
    "border-radius:6px;background:rgba(128,128,128,.14)"
)
_MISSING = "padding:8px;border:1px dashed rgba(128,128,128,.8);overflow:hidden;text-align:center;overflow-wrap:anywhere"
_NAME = "display:block;overflow-wrap:anywhere;max-height:4.1em;overflow:hidden"


def hits_html(hits: Sequence[Hit], roots: Mapping[str, Path] | None = None) -> str:
    """Draw hits in their order, each with rank, score and name, as HTML that needs no outside host and no script.

    Names and uris are shown as text, whatever they contain. A hit whose file cannot be read is a placeholder with its uri.

    Args:
        hits: the first `SHOWN` of them are drawn.
        roots: source name -> its folder here; files elsewhere are not shown. None: files are read where their uri says.
    """
    if not hits:
        return "<p>No hits.</p>"
    said = "1 hit" if len(hits) == 1 else f"{len(hits)} hits"
    parts = [_GRID.format(said), *(_item(rank, hit, roots) for rank, hit in enumerate(hits[:SHOWN], 1)), "</div>"]
    if len(hits) > SHOWN:
        parts.append(f"<p>{len(hits) - SHOWN} more hits are not drawn.</p>")
    return "".join(parts)


def _item(rank: int, hit: Hit, roots: Mapping[str, Path] | None) -> str:
    name = hit.key.rsplit("/", 1)[-1]
    group = "" if hit.group is None else f" · {_text(str(hit.group))}"
    return (
        f'{_ITEM}{_picture(hit, name, roots)}<figcaption style="margin-top:4px" title="{_text(hit.key)}">'
        f'<span style="opacity:.75">{rank} · {hit.score:.3f}{group}</span>'
        f'<bdi style="{_NAME}">{_text(name)}</bdi></figcaption></figure>'
    )


def _picture(hit: Hit, name: str, roots: Mapping[str, Path] | None) -> str:
    try:
        small = thumbnail(picture_bytes(hit, roots), side=SIDE)
    except ImageError as exc:
        return (
            f'<div role="img" aria-label="{_text(name)}: {exc.reason}" style="{_FRAME};{_MISSING}">'
            f"<span>{exc.reason}<br><bdi>{_text(hit.uri or hit.key)}</bdi></span></div>"
        )
    data = base64.b64encode(small.jpeg).decode("ascii")
    return (
        f'<div style="{_FRAME}"><img src="data:image/jpeg;base64,{data}" alt="{_text(name)}" '
        f'width="{small.width}" height="{small.height}" style="margin:0;max-width:100%;border-radius:6px"></div>'
    )


def _text(value: str) -> str:
    """Escaped for text and for quoted attributes. Control and bidi control characters, and halves of characters, become U+FFFD."""
    if len(value) > _LONGEST_NAME:
        value = value[: _LONGEST_NAME // 2] + " … " + value[-_LONGEST_NAME // 2 :]
    seen = "".join("\ufffd" if _is_hidden(char) else char for char in value)
    return html.escape(seen, quote=True)


def _is_hidden(char: str) -> bool:
    return char in _TURNS_AROUND or unicodedata.category(char) in {"Cc", "Cs", "Cn"}
