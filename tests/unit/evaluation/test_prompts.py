"""Class names and templates: read as given, refused with the class or line that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluation_support import MeanColours

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.embed import Embedder
from mcip_qdrant.evaluation.prompts import class_vectors, read_class_names, read_lines, read_templates


def test_one_unit_vector_for_each_class() -> None:
    vectors = class_vectors(Embedder(MeanColours()), ["a", "bbbb"], ["{}", "no {} here {}"])
    assert vectors.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    both = MeanColours().encode_texts(["bbbb", "no bbbb here bbbb"]).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(vectors[1], both / np.linalg.norm(both), atol=1e-6)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a photo of a {}.\n\n  art of {} \n", encoding="utf-8-sig")
    assert read_templates(tmp_path / "t.txt") == ("a photo of a {}.", "art of {}")
    (tmp_path / "n.txt").write_text("tench\nsea lion\n")
    assert read_class_names(tmp_path / "n.txt", ["n01", "n02"]) == ["tench", "sea lion"]
    (tmp_path / "n.json").write_text('{"n02": "sea lion", "n01": "tench", "n09": "more"}')
    assert read_class_names(tmp_path / "n.json", ["n01", "n02"]) == ["tench", "sea lion"]
    (tmp_path / "l.json").write_text('["tench", "sea lion"]')
    assert read_class_names(tmp_path / "l.json", ["n01", "n02"]) == ["tench", "sea lion"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"n01": "tench"}', "the class 'n02' has none"),
        ('["tench", " "]', "the class 'n02' has none"),
        ('["tench"]', "1 names for 2 classes"),
        ('"tench"', "expected words for each class"),
        ("{", "is not JSON"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_class_names(tmp_path / "n.json", ["n01", "n02"])


def test_templates_that_do_not_fit(tmp_path: Path) -> None:
    for text, message in (("a photo", r"'a photo' has no \{\}"), ("\n", "holds no template")):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(SourceError, match=message):
            read_templates(tmp_path / "t.txt")
    with pytest.raises(SourceError, match="cannot be read"):
        read_lines(tmp_path / "gone.txt")
