"""Hits are a list of frozen records that knows its groups and keeps its roots."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from mcip_qdrant import Hit, Hits


def hit(key: str, group: str | int | None = None, score: float = 0.5) -> Hit:
    return Hit(key, score, f"file:///{key}", {"key": f"s/{key}"}, group=group)


def test_a_hit_is_frozen_hashable_and_compared_without_its_vector() -> None:
    one = hit("a")
    assert one.key == "s/a"
    assert Hit("7", 0.1, "", {}).key == Hit("7", 0.1, "", {"key": None}).key == "7"
    with pytest.raises(FrozenInstanceError):
        one.score = 1.0  # type: ignore[misc]
    vectors = [np.ones(3, np.float32), np.zeros(3, np.float32)]
    same = [Hit("a", 0.5, "u", {"k": 1}, vector) for vector in vectors]
    assert same[0] == same[1]
    assert len(set(same)) == 1
    assert "vector" not in repr(same[0])


def test_slices_are_hits_with_the_same_roots() -> None:
    roots = {"s": Path("/data")}
    hits = Hits([hit("a"), hit("b"), hit("c")], roots=roots)
    assert hits == [hit("a"), hit("b"), hit("c")]
    assert isinstance(hits[1:], Hits)
    assert hits[1:] == [hit("b"), hit("c")]
    assert hits[::2].roots is roots
    assert hits[-1] == hit("c")
    assert not Hits()


def test_groups_keep_their_order() -> None:
    hits = Hits([hit("a", "x"), hit("b", "x"), hit("c", 7), hit("d", "x")])
    groups = hits.groups()
    assert list(groups) == ["x", 7]
    assert [one.id for one in groups["x"]] == ["a", "b", "d"]
    assert Hits([hit("a")]).groups() == {None: [hit("a")]}
    assert Hits().groups() == {}


def test_a_notebook_shows_a_grid() -> None:
    html = Hits([hit("a"), hit("b")])._repr_html_()
    assert html.count("<figure") == 2
    assert "s/b" in html
