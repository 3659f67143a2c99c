from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcip_qdrant import spill
from mcip_qdrant.spill import SeenNames, SortedNames

NAMES = st.lists(st.binary(min_size=1, max_size=12), max_size=60)


@pytest.fixture(autouse=True)
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 7)


@given(NAMES)
def test_names_come_back_sorted(names: list[bytes]) -> None:
    distinct = list(dict.fromkeys(names))
    kept = SortedNames()
    for name in distinct:
        kept.add(name)
    assert list(kept) == sorted(distinct)


@given(NAMES)
def test_only_the_first_time_is_new(names: list[bytes]) -> None:
    seen, known = SeenNames(), set()
    for name in names:
        assert seen.add(name) == (name not in known)
        known.add(name)
