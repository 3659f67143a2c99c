"""The report in its three forms, the paper's column where it belongs, and a page that hostile names cannot break."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import MeanColours, write_classes
from PIL import Image

from mcip_qdrant.errors import Reason, SourceError
from mcip_qdrant.evaluation.datasets import LabelledImages, read_folder
from mcip_qdrant.evaluation.embed import Embedder, Failure
from mcip_qdrant.evaluation.evaluation import Evaluation, Figure
from mcip_qdrant.evaluation.page import page, write_page
from mcip_qdrant.evaluation.protocols import captions, full_ranking
from mcip_qdrant.evaluation.published import PUBLISHED
from mcip_qdrant.evaluation.report import as_json, as_text, make_report
from mcip_qdrant.evaluation.scores import PerQuery


def evaluation(values: list[float], *, name: str = "mAP", model: str = "m", images: int = 12_000) -> Evaluation:
    figure = Figure(name, PerQuery(np.array(values)), np.arange(len(values)), "query")
    return Evaluation(
        "a rule", model, "ab" * 32, "onnx", "open_clip (…)", {"images": images, "classes": 1200}, [figure]
    )


def test_one_model() -> None:
    report = make_report("title", [evaluation([0.25, 0.75, np.nan])])
    said = as_json(report)
    assert said["figures"][0]["estimates"][0]["value"] == 0.5
    assert (said["figures"][0]["queries"], said["figures"][0]["undefined"]) == (2, 1)
    assert said["published"] is None
    json.dumps(said, allow_nan=False)
    text = as_text(report)
    assert re.search(r"mAP\s+50.00 \[25.00, 75.00\]\s+2 \(\+1 undefined\)", text)
    assert "open_clip (…)" in text


def test_two_models_are_paired() -> None:
    first, second = evaluation([0.1, 0.5, 0.9] * 20, model="a"), evaluation([0.2, 0.6, 1.0] * 20, model="b")
    report = make_report("title", [first, second])
    paired = as_json(report)["figures"][0]["difference"]
    assert paired["value"] == pytest.approx(0.1)
    assert paired["high"] - paired["low"] < 1e-9, "the same gain everywhere has no spread"
    assert "+10.00" in as_text(report)
    assert report.labels == ("A: a", "B: b")


def test_nothing_defined_is_null_and_a_dash() -> None:
    report = make_report("title", [evaluation([np.nan])])
    assert as_json(report)["figures"][0]["estimates"][0] == {"value": None, "low": None, "high": None}
    assert re.search(r"mAP\s+-\s+0 \(\+1 undefined\)", as_text(report))


def test_the_papers_column_stands_beside_the_whole_benchmark_only() -> None:
    whole = make_report("GPR1200", [evaluation([0.5])], PUBLISHED["gpr1200"])
    assert "OpenAI ViT-L@336, MCIP + Re-A    87.0" in as_text(whole)
    assert as_json(whole)["published"]["percent"]["SigLIP SO400M@384, MCIP + Re-A"] == 89.0
    assert "squash-1.125" in as_text(whole)
    part = make_report("GPR1200", [evaluation([0.5], images=11_999)], PUBLISHED["gpr1200"])
    assert part.published is None
    assert "not the whole benchmark" in part.notices[0]
    failed = replace(evaluation([0.5]), failures=(Failure(Path("x"), Reason.CORRUPT, "x"),))
    assert make_report("GPR1200", [failed], PUBLISHED["gpr1200"]).published is None


def test_the_papers_column_stands_beside_its_own_protocol_only() -> None:
    """Fewer captions per image are an easier task, and where its figure was not taken there is nothing to stand beside."""
    whole = replace(evaluation([0.5], name="text-to-image R@5"), sizes={"images": 1000, "captions": 5000})
    assert make_report("flickr30k", [whole], PUBLISHED["flickr30k"]).published is not None
    one = make_report("flickr30k", [replace(whole, sizes={"images": 1000, "captions": 1000})], PUBLISHED["flickr30k"])
    assert one.published is None
    assert one.notices[0].startswith("not the whole benchmark (1000 images, 5000 captions)")
    other = replace(evaluation([0.5], name="R@2"), sizes={"images": 5924, "classes": 100})
    report = make_report("CUB-200-2011", [other], PUBLISHED["cub"])
    assert report.published is None
    assert report.notices == (
        "R@1, which the paper gives, is not among the figures, so the paper's figures are not shown beside it",
    )


def test_published_rows_are_the_table_of_the_paper() -> None:
    # Averages that the paper itself prints for groups of columns: 3 of the 4 image-to-image figures and both captions.
    rows = {name: column.rows() for name, column in PUBLISHED.items()}
    base, tuned = "OpenAI ViT-L@336", "OpenAI ViT-L@336, MCIP + Re-A"
    for row, image_to_image, text_to_image in ((base, 68.5, 75.4), (tuned, 81.8, 78.2)):
        four = [rows[name][row] for name in ("gpr1200", "instre", "cub", "roxford")]
        assert np.mean(four) == pytest.approx(image_to_image, abs=0.051)
        assert np.mean([rows["flickr30k"][row], rows["coco"][row]]) == pytest.approx(text_to_image, abs=0.051)


def test_models_that_saw_different_images_are_not_compared() -> None:
    other = replace(evaluation([0.5]), failures=(Failure(Path("x"), Reason.NOT_FINITE, "x"),))
    with pytest.raises(SourceError, match="saw different data"):
        make_report("title", [evaluation([0.5]), other])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    return reader


def test_the_page_shows_queries_and_answers_and_loads_nothing(tmp_path: Path) -> None:
    images = read_folder(write_classes(tmp_path / "c"))
    report = make_report("classes", [full_ranking(Embedder(MeanColours()), images, query_in_ranking=False)])
    write_page(report, tmp_path / "page.html")
    reader = read((tmp_path / "page.html").read_text())
    pictures = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(pictures) == 12 * (1 + 5)
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)
    assert not [tag for tag, attributes in reader.tags if tag in {"script", "link", "iframe"} or "href" in attributes]
    policy = next(attributes for tag, attributes in reader.tags if attributes.get("http-equiv"))
    assert (policy["content"] or "").startswith("default-src 'none'")
    assert "wanted: class-" in reader.text
    assert "mAP" in reader.text


def test_hostile_names_and_captions_are_only_text(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>&"
    folder = tmp_path / "<b>x"
    folder.mkdir()
    paths = [folder / f"{attack.replace('/', '')}{number}.jpg" for number in range(3)]
    paths.append(Path(os.fsdecode(bytes(folder) + b"/caf\xe9.jpg")))
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 20), (60 * number, 90, 10)).save(path)
    images = LabelledImages(paths, np.zeros(4, dtype=np.int64), [attack], [[attack, "{{ 7 * 7 }}"]] * 4, (attack,))
    model = MeanColours()
    model.label = attack
    for found in (
        full_ranking(Embedder(model), images, query_in_ranking=True),
        captions(Embedder(model), images),
    ):
        html = page(make_report(attack, [found]))
        reader = read(html)
        assert not [tag for tag, _ in reader.tags if tag == "script"]
        assert all(set(attributes) <= {"src", "alt"} for tag, attributes in reader.tags if tag == "img")
        assert attack in reader.text
        html.encode()
    assert "{{ 7 * 7 }}" in reader.text


def test_pictures_on_the_page_carry_nothing_of_the_original_but_the_pixels(tmp_path: Path) -> None:
    images = read_folder(write_classes(tmp_path / "c", 2, 2))
    secret = Image.Exif()
    secret[0x010E] = "a secret place"
    for path in images.paths:
        Image.open(path).convert("RGB").save(path, comment=b"a secret name", exif=secret)
    images.paths[0].rename(tmp_path / "elsewhere.jpg")
    images.paths[0].symlink_to(tmp_path / "elsewhere.jpg")
    pipe = images.paths[1]
    found = full_ranking(Embedder(MeanColours()), images, query_in_ranking=False)
    pipe.unlink()
    os.mkfifo(pipe)
    reader = read(page(make_report("classes", [found])))
    sources = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert sources
    for source in sources:
        data = base64.b64decode(source.partition(",")[2])
        assert b"secret" not in data
        assert max(Image.open(io.BytesIO(data)).size) <= 160
    assert len(set(sources)) == 3, "the link is followed; the pipe is not waited for"


def test_a_picture_that_went_away_is_said_to(tmp_path: Path) -> None:
    images = read_folder(write_classes(tmp_path / "c", 2, 2))
    found = full_ranking(Embedder(MeanColours()), images, query_in_ranking=False)
    for path in images.paths:
        path.unlink()
    assert "file cannot be read" in page(make_report("classes", [found]))
    with pytest.raises(SourceError, match="cannot be written"):
        write_page(make_report("classes", [found]), tmp_path / "no" / "page.html")
