"""The programs in examples/, each started as a user would start it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cli_support import points, sabotage, vectors
from conftest import Exported
from qdrant_client import QdrantClient, models
from services import free_port, qdrant_server

from mcip_qdrant import Hits, ImageCollection, QueryEncoder
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.store import Store

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = "a red car in the snow"
LABELS = ("cat", "dog", "red car=a red car|a car painted red", "other=a photo")
TEXTS = {
    name: [
        prompt.format(name)
        for prompt in ("a photo of a {}", "a close-up photo of a {}", "a picture of a {} among other things")
    ]
    for name in ("cat", "dog")
} | {"red car": ["a red car", "a car painted red"], "other": ["a photo"]}


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> QueryEncoder:
    return QueryEncoder.open(clip.folder)


def _environment(library: Any, qdrant: object = None, **more: str) -> dict[str, str]:
    where = {"MCIP_QDRANT_BUNDLE": str(library.bundle), "MCIP_QDRANT_URL": str(qdrant or library.qdrant)}
    # The program's own deprecations are errors, too.
    return {**os.environ, **where, "PYTHONWARNINGS": "error", **more}


def _run(
    program: str, *arguments: object, environment: dict[str, str], code: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    return done


def _run_all(
    *commands: Sequence[object], environment: dict[str, str], code: int = 0
) -> list[subprocess.CompletedProcess[str]]:
    """Run several, two at a time. Each needs an embedded folder of its own."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command: _run(*command, environment=environment, code=code), commands))


def _copies(qdrant: Path, folder: Path, count: int) -> list[Path]:
    return [Path(shutil.copytree(qdrant, folder / f"copy-{number}")) for number in range(count)]


def _search(library: Any, encoder: QueryEncoder, **query: Any) -> Hits:
    client = QdrantClient(path=str(library.qdrant))
    try:
        return ImageCollection(client, "images", encoder).search(**query)
    finally:
        client.close()


def test_every_program_is_run_here() -> None:
    tested = set(re.findall(r'"(\w+)\.py"|"(\w+):app"', Path(__file__).read_text(encoding="utf-8")))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {one or other for one, other in tested}


def test_plain_qdrant_and_langchain_retriever(library: Any, encoder: QueryEncoder, tmp_path: Path) -> None:
    copies = iter(_copies(library.qdrant, tmp_path, 3))
    environment = _environment(library)
    # Set by the suite for itself; a user's environment may have neither, and nothing may depend on it.
    del environment["LANGSMITH_TRACING"], environment["LANGCHAIN_TRACING_V2"]
    picture = library.folder / "alpha.PNG"  # modified in 2009
    by_text, by_picture, chain = _run_all(
        ("plain_qdrant.py", TEXT, "--qdrant", next(copies)),
        ("plain_qdrant.py", picture, "--newer-than", "2024-01-01", "--limit", 3, "--qdrant", next(copies)),
        ("langchain_retriever.py", TEXT, "--source", "photos", "--qdrant", next(copies)),
        environment=environment,
    )

    expected = _search(library, encoder, text=TEXT, limit=5, collapse_duplicates=False)
    assert by_text.stdout.splitlines() == [f"{hit.score:.4f}  {hit.uri}" for hit in expected]
    recent = models.FieldCondition(key="modified_at", range=models.DatetimeRange(gt="2024-01-01T00:00:00Z"))
    newer = models.Filter(must=[recent])
    expected = _search(library, encoder, image=picture, filter=newer, limit=3, collapse_duplicates=False)
    assert by_picture.stdout.splitlines() == [f"{hit.score:.4f}  {hit.uri}" for hit in expected]
    assert "alpha.PNG" not in by_picture.stdout

    lines = chain.stdout.splitlines()
    assert lines[0] == f"Pictures for {TEXT!r}:"
    for line, hit in zip(lines[1:], _search(library, encoder, text=TEXT, limit=4), strict=True):
        size = f"{hit.payload['width']} x {hit.payload['height']}"
        assert line == f"- {hit.uri} ({size}, score {hit.score:.4f})"


@contextmanager
def _uvicorn(environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", EXAMPLES, "fastapi_route:app", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            url, patience = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while time.monotonic() < patience and process.poll() is None:
                try:
                    httpx.get(f"{url}/openapi.json")
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            said = process.communicate(timeout=30)[1]
    assert "Application shutdown complete" in said, said
    assert "Traceback" not in said, said


def test_fastapi_route(library: Any, encoder: QueryEncoder) -> None:
    expected = _search(library, encoder, text=TEXT, limit=3)
    with _uvicorn(_environment(library)) as url:
        answer = httpx.get(f"{url}/pictures", params={"text": TEXT, "limit": 3})
        assert answer.status_code == 200, answer.text
        assert [hit["key"] for hit in answer.json()] == [hit.key for hit in expected]
        assert answer.json()[0] == {
            "key": expected[0].key,
            "score": pytest.approx(expected[0].score, abs=1e-6),
            "width": expected[0].payload["width"],
        }
        picture = (library.folder / "turned.jpg").read_bytes()
        headers = {"Content-Type": "image/jpeg"}
        found = httpx.post(f"{url}/pictures/similar", params={"limit": 1}, content=picture, headers=headers).json()
        assert [(hit["key"], round(hit["score"], 4)) for hit in found] == [("photos/turned.jpg", 1.0)]
        for refused, reason in (
            (httpx.get(f"{url}/pictures", params={"text": " "}), "empty"),
            (httpx.get(f"{url}/pictures", params={"text": "x", "limit": 0}), "greater than or equal to 1"),
            (httpx.post(f"{url}/pictures/similar", content=b"garbage", headers=headers), "not a picture"),
        ):
            assert refused.status_code == 422
            assert reason in refused.text


def _check_tags(stored: dict[str, models.Record], before: dict[str, models.Record], encoder: QueryEncoder) -> None:
    """Every image has the label that numpy says, and nothing else was touched."""
    directions = np.stack([encoder.texts(texts).sum(axis=0) for texts in TEXTS.values()])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = (vectors(stored.values()) @ directions.T).argmax(axis=1)
    names = list(TEXTS)
    assert len(set(expected.tolist())) > 1, "the labels tell nothing apart"
    for (key, record), place in zip(stored.items(), expected, strict=True):
        payload = dict(record.payload or {})
        assert payload.pop("tag") == names[place]
        assert re.fullmatch("[0-9a-f]{16}", payload.pop("tagged_by"))
        old = dict(before[key].payload or {})
        old.pop("tag", None)
        assert payload == old


def _printed(out: str) -> dict[str, int]:
    return {name: int(count.replace(",", "")) for count, name in (line.split(maxsplit=1) for line in out.splitlines())}


def test_tag_archive_killed_and_resumed(library: Any, encoder: QueryEncoder, tmp_path: Path) -> None:
    before = points(library.qdrant)
    shutil.copytree(library.qdrant, tmp_path / "qdrant")
    environment = _environment(library, tmp_path / "qdrant")
    killed = {**environment, **sabotage(tmp_path / "sabotage", "persist", 17, signal.SIGKILL)}
    _run("tag_archive.py", *LABELS, "--batch", 5, environment=killed, code=-signal.SIGKILL)
    halfway = sum("tagged_by" in (record.payload or {}) for record in points(tmp_path / "qdrant").values())
    assert 10 <= halfway <= 17

    done = _run("tag_archive.py", *LABELS, "--batch", 5, environment=environment)
    stored = points(tmp_path / "qdrant")
    _check_tags(stored, before, encoder)
    assert _printed(done.stdout) == Counter(record.payload["tag"] for record in stored.values())
    assert f" {halfway}/{len(before)} " in done.stderr.replace("\r", "\n"), "the bar begins with what was there"
    assert f"100%|██████████| {len(before)}/{len(before)} " in done.stderr

    # Nothing is left to do: not one point is written, unless told to begin again, or the labels are others.
    idle = {**environment, **sabotage(tmp_path / "sabotage", "persist", 1, signal.SIGKILL)}
    assert _run("tag_archive.py", *LABELS, environment=idle).stdout == done.stdout
    again, others = _copies(tmp_path / "qdrant", tmp_path, 2)
    _run_all(
        ("tag_archive.py", *LABELS, "--all", "--qdrant", again),
        ("tag_archive.py", *LABELS, "horse", "--qdrant", others),
        environment=idle,
        code=-signal.SIGKILL,
    )


def test_tag_archive_on_a_server(library: Any, encoder: QueryEncoder, tmp_path: Path) -> None:
    before = points(library.qdrant)
    with qdrant_server(tmp_path / "server") as service:
        client = QdrantClient(service.url)
        ensure_collection(Store.of(client), "images", encoder.bundle.manifest, {})
        structs = [
            models.PointStruct(id=one.id, vector=one.vector, payload={**one.payload, "tag": "an old one"})
            for one in before.values()
        ]
        client.upsert("images", structs, wait=True)
        done = _run("tag_archive.py", *LABELS, environment=_environment(library, service.url))
        records, _ = client.scroll("images", limit=100, with_vectors=True)
        _check_tags({record.payload["key"]: record for record in records}, before, encoder)
        assert sum(_printed(done.stdout).values()) == len(before)
        assert {"tag", "tagged_by"} <= set(client.get_collection("images").payload_schema)
        client.close()


def test_another_models_archive_is_not_touched(library: Any, other_clip: Exported, tmp_path: Path) -> None:
    shutil.copytree(library.qdrant, tmp_path / "qdrant")
    environment = _environment(library, tmp_path / "qdrant", MCIP_QDRANT_BUNDLE=str(other_clip.folder))
    refused = _run("tag_archive.py", *LABELS, environment=environment, code=1)
    assert "SpaceMismatchError" in refused.stderr
    assert not any("tagged_by" in (record.payload or {}) for record in points(tmp_path / "qdrant").values())
