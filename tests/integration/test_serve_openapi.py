"""The OpenAPI description tells the truth: its examples work, and schemathesis finds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server_support import Shown


@pytest.fixture(scope="module")
def schema(shown: Shown) -> dict[str, Any]:
    """`/openapi.json`."""
    found: dict[str, Any] = shown.served.http.get("/openapi.json").json()
    return found


def test_every_route_is_described_with_all_its_answers(schema: dict[str, Any]) -> None:
    assert set(schema["paths"]) == {
        *("/v1/embeddings", "/v1/models", "/v1/search", "/v1/facets", "/v1/collection", "/v1/thumbnails/{point}"),
        *("/health", "/metrics"),
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["description"], path
            assert "422" not in operation["responses"]
            assert "503" in operation["responses"]


def test_the_examples_work(shown: Shown, schema: dict[str, Any]) -> None:
    tried = 0
    for path in ("/v1/embeddings", "/v1/search"):
        examples = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for name, example in examples.items():
            body = dict(example["value"])
            if "like" in body:
                body["like"] = "photos/photo-0001.jpg"
            answer = shown.served.post(path, body)
            assert answer.status_code == 200, (name, answer.text)
            tried += 1
    assert tried == 9


def test_schemathesis_finds_nothing(shown: Shown, tmp_path: Path) -> None:
    """Hundreds of requests, sensible and not: no 5xx, no undescribed status, no answer of another form, nothing invalid accepted.

    Left out is the one check that wants every request of the right form accepted: whether parts of a mix cancel, base64 is a
    picture, or Qdrant knows a filter cannot be said in a schema. The examples above stand in for it.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"),
            *(
                f"{shown.served.url}openapi.json",
                "--phases",
                "examples,coverage,fuzzing",
                "--max-examples",
                "8",
                "--seed",
                "1",
                "--no-color",
            ),
            *("--exclude-checks", "positive_data_acceptance", "--warnings", "off", "--no-shrink"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: 8" in done.stdout, done.stdout
