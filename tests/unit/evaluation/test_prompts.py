"""Class names and templates: read as given, refused with the class or line that is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import MeanColours, write_classes
from numpy.typing import NDArray

from mcip_qdrant.errors import SourceError
from mcip_qdrant.evaluation.datasets import read_folder
from mcip_qdrant.evaluation.embed import Embedder
from mcip_qdrant.evaluation.prompts import class_vectors, read_class_names, read_lines, read_templates, repeated_names
from mcip_qdrant.evaluation.protocols import zero_shot


def test_one_unit_vector_for_each_class() -> None:
    vectors = class_vectors(Embedder(MeanColours()), ["a", "bbbb"], ["{}", "no {} here {}"])
    assert vectors.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    both = MeanColours().encode_texts(["bbbb", "no bbbb here bbbb"]).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(vectors[1], both / np.linalg.norm(both), atol=1e-6)


def test_classes_of_one_name_have_one_vector_whatever_their_batch() -> None:
    class Drifting(MeanColours):
        """Rounds another way in every batch, as matrix products may."""

        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return super().encode_texts(texts) + np.float32(1e-7) * self.texts

    names = ["missile", *("x" * number for number in range(1, 300)), "missile"]
    vectors = class_vectors(Embedder(Drifting()), names, ["{}"])
    assert vectors.shape == (301, 12)
    assert vectors[0].tobytes() == vectors[-1].tobytes()
    assert repeated_names(names) == [300]


def test_imagenets_rule_gives_the_win_to_the_first_of_a_name(tmp_path: Path) -> None:
    images = read_folder(write_classes(tmp_path, 3, 4))
    model = MeanColours()
    tied, first = (
        zero_shot(Embedder(model), images, ["same", "same", "same"], ["{}"], first_of_name_wins=wins).figures[0].score
        for wins in (False, True)
    )
    assert tied.values.tolist() == [0] * 12
    assert first.values.tolist() == [1] * 4 + [0] * 8


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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tench", "sea lion", ""], "3 names for 2 classes"),
        (["tench", "sea lion", None], "3 names for 2 classes"),
        (["tench", ""], "the class 'n02' has none"),
        ([None], "1 names for 2 classes"),
        ("tench", "expected words for each class"),
    ],
)
def test_lists_of_class_names_that_do_not_fit(tmp_path: Path, names: object, message: str) -> None:
    (tmp_path / "n.json").write_text(json.dumps(names))
    with pytest.raises(SourceError, match=message):
        read_class_names(tmp_path / "n.json", ["n01", "n02"])
