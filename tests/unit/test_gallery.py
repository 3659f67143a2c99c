"""A list of hits in a notebook: thumbnails of real pictures, placeholders, and nothing but text from hostile names."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import photo_paths, write_archive
from PIL import Image

from mcip_qdrant.gallery import SHOWN, SIDE, hits_html
from mcip_qdrant.hit import Hit
from mcip_qdrant.keys import encode_path, file_uri

TAGS = {"div", "figure", "figcaption", "img", "span", "bdi", "br", "p"}
ATTRIBUTES = {"class", "role", "aria-label", "style", "title", "src", "alt", "width", "height"}


class Page(HTMLParser):
    """What a browser makes of it: tags with attributes, and text. Anything that could run or load fails."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        html.encode("utf-8")  # what a notebook sends
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        assert len({name for name, _ in attrs}) == len(attrs)
        found = {name: value or "" for name, value in attrs}
        assert "url(" not in found.get("style", "")
        if "src" in found:
            assert found["src"].startswith("data:image/jpeg;base64,")
        self.tags.append((tag, found))
        if tag not in {"img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def images(self) -> list[dict[str, str]]:
        return [found for tag, found in self.tags if tag == "img"]


def _hit(path: Path, key: str, score: float = 0.5) -> Hit:
    return Hit("id", score, file_uri(bytes(path)), {"key": key})


def test_every_hit_with_thumbnail_rank_score_and_name(tmp_path: Path) -> None:
    paths = write_archive(tmp_path / "photos", 5)
    hits = [_hit(path, f"photos/{path.name}", 0.9 - index / 10) for index, path in enumerate(paths)]
    page = Page(hits_html(hits, {"photos": tmp_path / "photos"}))
    assert page.tags[0][1]["aria-label"] == "5 hits"
    assert sum(found.get("role") == "listitem" for _, found in page.tags) == 5
    assert [image["alt"] for image in page.images] == [path.name for path in paths]
    assert "1 · 0.900" in page.text
    assert "5 · 0.500" in page.text
    for image, path in zip(page.images, paths, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert shown.size == (int(image["width"]), int(image["height"]))
        assert max(shown.size) <= SIDE
        reference = Image.open(path).convert("RGB").resize(shown.size)
        assert np.abs(np.asarray(shown, float) - np.asarray(reference, float)).mean() < 10


def test_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo_paths()[3]).convert("RGB").resize((300, 200)).save(tmp_path / "turned.jpg", exif=exif)
    (image,) = Page(hits_html([_hit(tmp_path / "turned.jpg", "x/turned.jpg")])).images
    assert int(image["width"]) < int(image["height"]) == SIDE


def test_missing_and_broken_files_are_placeholders_with_their_uri(tmp_path: Path) -> None:
    (whole,) = write_archive(tmp_path, 1)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(whole.read_bytes()[:500])
    hits = [_hit(tmp_path / "gone.jpg", "x/gone.jpg"), _hit(broken, "x/broken.jpg"), Hit("7", 0.1, "", {})]
    page = Page(hits_html(hits, {"x": tmp_path}))
    assert page.images == []
    text = "\n".join(page.text)
    assert f"gone\n{hits[0].uri}" in text
    assert f"corrupt\n{hits[1].uri}" in text
    assert "outside_root\n7" in text


def test_files_outside_the_roots_are_not_shown(tmp_path: Path) -> None:
    (secret,) = write_archive(tmp_path / "private", 1)
    (tmp_path / "photos").mkdir()
    hits = [_hit(secret, key) for key in ("photos/../private/photo-0000.jpg", f"photos//{secret}", "other/x.jpg")]
    assert Page(hits_html(hits, {"photos": tmp_path / "photos"})).images == []
    assert Page(hits_html(hits, {})).images == []
    assert len(Page(hits_html(hits, None)).images) == 3, "without roots the uri counts"


def test_empty_and_long_answers(tmp_path: Path) -> None:
    assert Page(hits_html([])).text == ["No hits."]
    page = Page(hits_html([_hit(tmp_path / "gone.jpg", "x/gone.jpg")] * (SHOWN + 3)))
    assert sum(found.get("role") == "listitem" for _, found in page.tags) == SHOWN
    assert page.text[-1] == "3 more hits are not drawn."
    assert Page(hits_html([_hit(tmp_path / "a.jpg", "x/a.jpg")])).tags[0][1]["aria-label"] == "1 hit"


HOSTILE = [
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(1)>.jpg',
    "' onmouseover='alert(1).jpg",
    "</figure></div><iframe srcdoc='x'>.jpg",
    "&lt;script&gt;.jpg",
    "<!--.jpg",
    "photo\u202egpj.exe",
    "a\x00b\x1b[31m\n.jpg",
    "half \ud83d a character.jpg",
    "{}{0}%s{said}.jpg",
    "$\\href{javascript:alert(1)}{x}$.jpg",
    "x" * 100_000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:24])
@pytest.mark.parametrize("known", [True, False])
def test_hostile_names_are_text(tmp_path: Path, name: str, known: bool) -> None:
    (path,) = write_archive(tmp_path, 1)
    hit = Hit(name, 0.5, file_uri(bytes(path)) if known else f"file://{name}", {"key": f"x/{name}"}, group=name)
    page = Page(hits_html([hit]))
    assert len(page.images) == (known and "\ud83d" not in name)
    assert len(hits_html([hit])) < 50_000
    text = "".join(page.text)
    assert not {"\u202e", "\x00", "\x1b", "\ud83d"} & set(text)
    if name.isprintable() and len(name) < 300 and "/" not in name:
        assert name in page.text


@given(key=st.text(), uri=st.text(), group=st.none() | st.text() | st.integers(), score=st.floats())
def test_any_payload_gives_the_same_harmless_tags(key: str, uri: str, group: str | int | None, score: float) -> None:
    page = Page(hits_html([Hit("id", score, uri, {"key": key}, group=group)], {}))
    assert [tag for tag, _ in page.tags] == ["div", "figure", "div", "span", "br", "bdi", "figcaption", "span", "bdi"]


@pytest.mark.parametrize("name", ["100%.jpg", "50%25 off & more.jpg", "süß 'n' <b>.jpg"])
def test_odd_but_honest_names_are_found(tmp_path: Path, name: str) -> None:
    (path,) = write_archive(tmp_path, 1)
    odd = path.rename(tmp_path / name)
    page = Page(hits_html([_hit(odd, f"x/{encode_path(str(odd.name))}")], {"x": tmp_path}))
    assert len(page.images) == 1
