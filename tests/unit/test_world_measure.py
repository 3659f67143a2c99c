"""Figures of the small world on vectors whose figures are known beforehand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mcip_qdrant.world.archive import Picture, pictures
from mcip_qdrant.world.captions import class_name
from mcip_qdrant.world.measure import FIGURES, measure
from mcip_qdrant.world.scenes import Group, WorldSize

Vectors = NDArray[np.float32]
SIZE = WorldSize(groups=12, scenes_per_group=4, views=3)


@pytest.fixture(scope="module")
def made() -> list[Picture]:
    return pictures("test", seed=1, size=SIZE)


def unit(rows: NDArray[np.float64]) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def speaks_of(text: str, group: Group) -> bool:
    """Whether a prompt (`a large red circle`) or a short text (`a red circle`) is true of a group."""
    things = [group.large] if "large" in text or "big" in text else [group.large, group.small]
    return any(text.endswith(f" {class_name(thing)}") for thing in things)


def oracle(made: list[Picture], *, detail: float) -> tuple[Vectors, Callable[[list[str]], Vectors]]:
    """Vectors that know group and, as far as `detail` goes, instance; texts are put into the group they speak of."""
    groups = list(dict.fromkeys(picture.scene.group for picture in made))
    instances = list(dict.fromkeys(picture.scene.number for picture in made))
    rows = np.zeros((len(made), len(groups) + len(instances)))
    of_text: dict[str, list[int]] = {}
    for row, picture in zip(rows, made, strict=True):
        group = groups.index(picture.scene.group)
        row[group] = 1
        row[len(groups) + instances.index(picture.scene.number)] = detail
        of_text[picture.captions[0].text] = [group]

    def encode(texts: list[str]) -> Vectors:
        vectors = np.full((len(texts), rows.shape[1]), 1e-6)
        for vector, text in zip(vectors, texts, strict=True):
            named = [index for index, group in enumerate(groups) if speaks_of(text, group)]
            vector[of_text.get(text, named)] = 1
        return unit(vectors)

    return unit(rows), encode


def test_vectors_that_know_all_score_all(made: list[Picture]) -> None:
    found = measure(made, *oracle(made, detail=1.0))
    assert set(found) == set(FIGURES)
    assert found == pytest.approx(dict.fromkeys(FIGURES, 1.0))


def test_vectors_that_know_what_captions_say_find_texts_but_not_instances(made: list[Picture]) -> None:
    found = measure(made, *oracle(made, detail=0.0))
    # Both positives are tied with the nine pictures of the group's other instances: precision 2 / 11 at either.
    assert found["image_map"] == pytest.approx(2 / 11)
    assert [found[name] for name in FIGURES[1:]] == pytest.approx([1.0] * 5)


def test_random_vectors_score_by_chance(made: list[Picture]) -> None:
    rng = np.random.default_rng(0)
    found = measure(
        made,
        unit(rng.standard_normal((len(made), 64))),
        lambda texts: unit(rng.standard_normal((len(texts), 64))),
    )
    assert found["image_map"] < 0.1
    assert found["text_recall_at_1"] == pytest.approx(1 / 12, abs=0.08)
    assert found["text_recall_at_5"] == pytest.approx(5 / 12, abs=0.15)
    assert found["zero_shot"] < 0.1
