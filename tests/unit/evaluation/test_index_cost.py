"""What a collection's index costs, asked of a real embedded Qdrant, where exact search and the index are the same search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from evaluation_support import MeanColours
from qdrant_client import QdrantClient, models

from mcip_qdrant.evaluation.embed import Embedder
from mcip_qdrant.evaluation.index_cost import Questions, index_cost
from mcip_qdrant.evaluation.searches import Searches, SearchSettings
from mcip_qdrant.store import Store

WIDTH = MeanColours.embedding_dim


def unit(count: int, seed: int = 0) -> Any:
    made = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.of(QdrantClient(":memory:"))
    yield store
    store.close()


def searches(store: Store, vectors: Any, payloads: Sequence[dict[str, Any]] | None = None) -> Searches:
    """A collection of these vectors; the points' ids are their numbers."""
    store.call(
        lambda client: client.create_collection(
            "images", vectors_config=models.VectorParams(size=WIDTH, distance=models.Distance.COSINE)
        )
    )
    points = [
        models.PointStruct(
            id=str(UUID(int=number)), vector=vector.tolist(), payload=payloads[number] if payloads else {}
        )
        for number, vector in enumerate(vectors)
    ]
    store.call(lambda client: client.upsert("images", points))
    return Searches(store, "images", SearchSettings())


def numbers(ids: Sequence[str]) -> set[int]:
    return {UUID(one).int for one in ids}


def test_the_exact_list_holds_every_copy_of_its_last_item(store: Store) -> None:
    vectors = np.repeat(unit(5), 60, axis=0)  # 0 to 59 are one picture
    found = searches(store, vectors)
    assert numbers(found.nearest(vectors[0], 3).ids) >= set(range(60))
    assert numbers(found.nearest(vectors[0], 3, left_out=str(UUID(int=7))).ids) >= set(range(60)) - {7}
    assert len(found.nearest(vectors[0], 300).ids) == 300
    assert len(found.nearest(vectors[0], 300, left_out=str(UUID(int=7))).ids) == 299


def test_the_exact_list_is_no_longer_than_needed(store: Store) -> None:
    vectors = unit(200)
    assert len(searches(store, vectors).nearest(vectors[0], 3).ids) < 20


def differences(searches: Searches, questions: Questions) -> dict[str, float]:
    """Index minus exact, at most over the queries, of each figure."""
    exact, index = index_cost(searches, Embedder(MeanColours()), questions)
    found = {}
    for one, other in zip(exact.figures, index.figures, strict=True):
        np.testing.assert_array_equal(one.score.defined, other.score.defined)
        found[one.name] = float(np.nanmax(np.abs(one.score.values - other.score.values)))
    return found


def test_the_same_search_twice_shows_no_difference_where_there_are_copies(store: Store) -> None:
    """Twelve pictures, each seven times, the copies in two classes and with a caption of their own."""
    vectors = np.repeat(unit(12), 7, axis=0)[np.random.default_rng(1).permutation(84)]
    payloads = [{"kind": f"k{number % 5}", "said": "x" * (number + 1)} for number in range(84)]
    found = searches(store, vectors, payloads)
    for depth in (3, 21, 40):
        questions = Questions(ks=(1, 5, 10), depth=depth, class_field="kind", caption_field="said")
        assert set(differences(found, questions).values()) == {0.0}


def test_the_same_search_twice_shows_no_difference_where_most_points_have_no_class(store: Store) -> None:
    vectors = unit(150)
    payloads = [{"kind": f"k{number % 2}"} if number % 5 == 0 else {} for number in range(150)]
    found = searches(store, vectors, payloads)
    for depth in (21, 40):
        assert set(differences(found, Questions(ks=(1,), depth=depth, class_field="kind")).values()) == {0.0}
