"""docs/querying.md is true: its snippets run, in order, against an archive that was really ingested."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import run
from conftest import Exported
from photos import write_archive
from qdrant_client import QdrantClient, models
from services import QdrantService, qdrant_server

from mcip_qdrant import Hits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "querying.md"
FOREIGN = 13


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Desk:
    """A working directory as the page assumes it, and the server that stands for localhost:6333."""

    folder: Path
    url: str

    def here(self, text: str) -> str:
        """A snippet, with the page's server replaced by ours."""
        return text.replace("http://localhost:6333", self.url)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, clip: Exported) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "bundle").symlink_to(clip.folder)
    paths = write_archive(folder / "photos", FOREIGN)
    shutil.copy(paths[3], folder / "photos" / "copy.jpg")
    shutil.copy(paths[5], folder / "car.jpg")
    rows = [f"{path.name},{2017 + number % 4}" for number, path in enumerate(paths)]
    (folder / "years.csv").write_text("\n".join(["path,year", *rows]))
    with qdrant_server(folder / "qdrant") as service:
        where = ("--bundle", "bundle", "--qdrant", service.url)
        run("ingest", "photos", *where, "--columns", "years.csv", "--index", "year:integer", cwd=folder)
        _foreign(service, paths, ("foreign", "foreign-too"))
        yield Desk(folder, service.url)


def _foreign(service: QdrantService, paths: list[Path], names: tuple[str, ...]) -> None:
    client = QdrantClient(url=service.url, check_compatibility=False)
    records, _ = client.scroll("images", limit=100, with_vectors=True)
    vectors = {(one.payload or {})["key"]: one.vector for one in records}
    size = models.VectorParams(size=32, distance=models.Distance.COSINE)
    for name in names:
        client.create_collection(name, vectors_config=size)
        rows: list[Any] = [vectors[f"photos/{path.name}"] for path in paths]
        payloads = [{"filename": path.name} for path in paths]
        client.upsert(name, models.Batch(ids=list(range(len(paths))), vectors=rows, payloads=payloads))
    client.close()


@pytest.fixture(scope="module")
def names(desk: Desk) -> dict[str, Any]:
    """What the page's Python leaves behind, all snippets run one after the other."""
    before, spoken = Path.cwd(), sys.modules.get("__main__")
    namespace: dict[str, Any] = {"__name__": "querying"}
    os.chdir(desk.folder)
    try:
        for number, source in enumerate(blocks("python")):
            exec(compile(desk.here(source), f"{PAGE.name}, snippet {number}", "exec"), namespace)  # noqa: S102 - our own page
    finally:
        os.chdir(before)
    assert sys.modules.get("__main__") is spoken
    return namespace


def test_every_python_snippet_runs_and_says_what_it_should(names: dict[str, Any], desk: Desk) -> None:
    assert len(blocks("python")) >= 15
    encoder, images = names["encoder"], names["images"]
    assert names["vector"].shape == (32,)
    for vector in names["same"]:
        np.testing.assert_array_equal(vector, names["same"][0])
    v = [encoder.text("a beach at night"), encoder.image(desk.folder / "car.jpg"), encoder.text("people")]
    s = v[0] + 0.7 * v[1] - 0.4 * v[2]
    np.testing.assert_allclose(names["mixed"], s / np.linalg.norm(s), atol=2e-6)
    hits = names["hits"]
    assert isinstance(hits, Hits)
    assert len(hits) == 10
    pages = [hit.payload["sha256"] for hit in (*names["first"], *names["second"])]
    assert len(pages) == len(set(pages)) == 10
    assert len(names["every_file"]) == 10
    assert images.count() == FOREIGN + 1
    groups = names["by_year"].groups()
    assert set(groups) == {2017, 2018, 2019, 2020}
    assert all(len(members) <= 2 for members in groups.values())
    assert [len(one) for one in names["answers"]] == [10, 3, 10]
    assert "13 of 13 images gave the stored vector" in str(names["found"])


def test_the_async_recipe_finds_what_the_other_one_does(names: dict[str, Any]) -> None:
    for text, points in zip(("a red car", "two dogs", "brick wall"), names["found_async"], strict=True):
        expected = names["client"].query_points("images", query=names["encoder"].text(text), limit=5).points
        np.testing.assert_allclose([one.score for one in points], [one.score for one in expected], atol=1e-6)
        assert {one.payload["sha256"] for one in points} == {one.payload["sha256"] for one in expected}


def test_every_shell_command_runs(desk: Desk) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("mcip-qdrant ")]
    assert len(lines) >= 4
    for line in lines:
        said = run(*shlex.split(desk.here(line))[1:], cwd=desk.folder)
        assert said.out
    install = [line for block in blocks("sh") for line in block.splitlines() if not line.startswith("mcip-qdrant ")]
    assert install == ['pip install "mcip-qdrant[cpu]"']


def test_names_and_numbers_on_the_page_are_the_codes() -> None:
    import mcip_qdrant
    from mcip_qdrant import adoption, decode, mix, query, space_guard

    text = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`([A-Z]\w+(?:Error|Warning))`", text):
        assert name in {*mcip_qdrant.__all__, "ValueError", "McipError"}
    assert f"up to {query._TEXT_BATCH} texts or {query._IMAGE_BATCH} pictures" in text
    assert (space_guard.RECHECK_S, "every two seconds" in text) == (2.0, True)
    assert (mix.CANCELLED, "|s| < 0.0001" in text) == (1e-4, True)
    limits = decode.DecodeLimits()
    assert (limits.max_bytes >> 20, limits.max_pixels // 10**6) == (256, 89)
    assert "256 MiB, 89 megapixels" in text
    assert f"up to {adoption.PROBED} of the collection's own images" in text
    assert (adoption.SAME, adoption.SHARE) == (0.98, 0.8)
