"""What a protocol says besides its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluation_support import MeanColours, write_classes

from mcip_qdrant.evaluation.datasets import NO_CLASS, LabelledImages, read_folder
from mcip_qdrant.evaluation.embed import Embedder
from mcip_qdrant.evaluation.evaluation import Evaluation
from mcip_qdrant.evaluation.protocols import full_ranking, nearest_neighbours, recall, zero_shot


def by_every_protocol(images: LabelledImages) -> list[Evaluation]:
    embedder = Embedder(MeanColours())
    return [
        full_ranking(embedder, images, query_in_ranking=False),
        recall(embedder, images, [1]),
        nearest_neighbours(embedder, images, images),
        zero_shot(embedder, images, images.names, ["{}"]),
    ]


def test_figures_that_cannot_be_less_than_perfect_say_so(tmp_path: Path) -> None:
    for found in by_every_protocol(read_folder(write_classes(tmp_path, 1, 3))):
        assert found.figures[0].score.mean == 1
        assert [notice for notice in found.notices if "no answer can be wrong" in notice], found.rule


@pytest.mark.parametrize("classes", [2, 3])
def test_others_do_not(tmp_path: Path, classes: int) -> None:
    for found in by_every_protocol(read_folder(write_classes(tmp_path, classes, 3))):
        assert found.notices == ()


def test_a_distractor_can_be_wrong(tmp_path: Path) -> None:
    found = read_folder(write_classes(tmp_path, 1, 4))
    mixed = LabelledImages(found.paths, np.array([0, 0, 0, NO_CLASS]), found.names)
    assert full_ranking(Embedder(MeanColours()), mixed, query_in_ranking=False).notices == ()
