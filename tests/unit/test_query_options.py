"""`--filter FIELD=VALUE` finds a value whatever type its column became."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
from qdrant_client import QdrantClient, models

from mcip_qdrant.cli.query_options import qdrant_filter

VALUES: list[Any] = [
    1,
    1.0,
    "1",
    "1.0",
    True,
    "true",
    "TRUE",
    2.5,
    "2.5",
    -0.001,
    9007199254740993,
    "ä=b",
    "",
    ["x", 7],
]


@pytest.fixture(scope="module")
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=n, vector=[1, 0], payload={"v": value}) for n, value in enumerate(VALUES)]
    client.upsert("c", points)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", [1, 1.0, "1"]),
        ("1.0", [1, 1.0, "1.0"]),
        ("1e0", [1, 1.0]),
        ("01", []),
        ("true", [True, "true"]),
        ("TRUE", [True, "TRUE"]),
        ("2.50", [2.5]),
        ("2.5", [2.5, "2.5"]),
        ("-1e-3", [-0.001]),
        ("9007199254740993", [9007199254740993]),
        ("9007199254740992", []),
        ("ä=b", ["ä=b"]),
        ("", [""]),
        ("x", [["x", 7]]),
        ("7", [["x", 7]]),
        ("nan", []),
        ("1e999", []),
        ("9" * 400, []),
    ],
)
def test_values_of_every_type(client: QdrantClient, value: str, expected: list[Any]) -> None:
    found = client.scroll("c", scroll_filter=qdrant_filter([f"v={value}"]), limit=100)[0]
    assert [repr((point.payload or {})["v"]) for point in found] == [repr(one) for one in expected]


@pytest.mark.parametrize("text", ["", "year", "=1", "{", '{"must": 3}', '{"nothing": []}'])
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"--filter") as caught:
        qdrant_filter([text])
    assert len(str(caught.value)) < 200
    assert "pydantic" not in str(caught.value)
