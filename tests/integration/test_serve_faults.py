"""What happens to a running server when Qdrant goes, the collection goes, or an alias moves."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_support import run
from click.testing import CliRunner
from conftest import Exported
from photos import write_archive
from qdrant_client import QdrantClient, models
from server_support import Served, in_thread, refused, serving
from services import free_port, qdrant_server

from mcip_qdrant.cli.main import cli
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.settings import Limits
from mcip_qdrant.store import open_store


def status(served: Served, **body: Any) -> tuple[int, str]:
    """Status and message of a search."""
    answer = served.post("/v1/search", body or {"text": "x"})
    found = answer.json()
    assert "Traceback" not in answer.text
    return answer.status_code, found.get("error", {}).get("message", "")


def eventually(served: Served, wanted: int) -> str:
    """Ask until the status is the wanted one: what a name stands for is looked up every two seconds."""
    deadline = time.monotonic() + 60
    while (found := status(served))[0] != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found[1]


def test_qdrant_comes_late_goes_and_comes_back_and_its_collection_changes(
    clip: Exported, other_clip: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    write_archive(folder, 6)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Down at start: embeddings work, searches say when to come back.
    with serving("--bundle", clip.folder, "--qdrant", url, "--source-root", folder, cwd=tmp_path) as served:
        assert "answer 503 until it is back" in "".join(served.said)
        away = served.post("/v1/search", {"text": "x"})
        assert (away.status_code, away.headers["retry-after"]) == (503, "5")
        assert url not in away.text, "where Qdrant lives is nobody's business"
        assert served.post("/v1/embeddings", {"input": "x"}).status_code == 200
        assert served.http.get("/health").status_code == 200
        with qdrant_server(tmp_path / "qdrant", port=port) as service:
            assert "no collection 'images'" in eventually(served, 404)
            run("ingest", folder, "--bundle", clip.folder, "--qdrant", url, cwd=tmp_path)
            eventually(served, 200)
            (hit,) = served.search(text="x", limit=1)["hits"]
            assert served.http.get(hit["thumbnail"]).status_code == 200
            # In between, without warning.
            service.kill()
            assert status(served)[0] == 503
            assert served.http.get(hit["thumbnail"]).status_code == 503
            service.start()
            eventually(served, 200)
            assert served.post("/v1/facets", {}).status_code == 200
            assert "payload index" in served.post("/v1/facets", {"fields": ["width"]}).json()["error"]["message"]
            # The collection goes.
            client = QdrantClient(url, check_compatibility=False)
            client.delete_collection("images")
            assert "no collection" in eventually(served, 404)
            assert served.http.get(hit["thumbnail"]).status_code == 404
            # An alias takes its name, then moves to another model's collection of the same dimension.
            for name, exported in (("first", clip), ("second", other_clip)):
                where = ("--bundle", exported.folder, "--qdrant", url, "--collection", name)
                run("ingest", folder, *where, cwd=tmp_path)
            point_to(client, "first")
            eventually(served, 200)
            point_to(client, "second", moved=True)
            message = eventually(served, 409)
            assert "space_id" in message
            assert "tiny-clip" in message
            assert "other-clip" in message
            point_to(client, "first", moved=True)
            eventually(served, 200)
            client.close()
            # Wrong bundle at start.
            wrong = ("--bundle", other_clip.folder, "--qdrant", url, "--collection", "first")
            assert "space_id" in refused(*wrong, cwd=tmp_path, expect=4).err


def test_a_qdrant_that_hangs_holds_up_nothing_but_searches(clip: Exported) -> None:
    """It takes connections and never answers."""

    async def clients(url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=80)) as client:
            searches = [asyncio.create_task(client.post("/v1/search", json={"text": "x"})) for _ in range(60)]
            await asyncio.sleep(0.3)
            assert (await client.post("/v1/embeddings", json={"input": "x"})).status_code == 200
            assert not any(search.done() for search in searches), "no thread had to become free for that"
            return [(await search).status_code for search in searches]

    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent, QueryEncoder.open(clip.folder) as encoder:
        store = open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=3)
        with in_thread(encoder, Limits(patience_s=12), store=store) as url:
            started = time.monotonic()
            assert set(asyncio.run(clients(url))) == {503}
            assert time.monotonic() - started < 40, "sixty in turn would take minutes"
        store.close()


def point_to(client: QdrantClient, collection: str, *, moved: bool = False) -> None:
    """Let the alias `images` stand for a collection."""
    new = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name="images"))
    old = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="images"))
    client.update_collection_aliases([old, new] if moved else [new])


def test_what_is_wrong_at_start_is_said(clip: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle, nowhere = ("--bundle", str(clip.folder)), str(tmp_path / "none")

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["serve", "--port", "0", *arguments])
        assert done.exit_code != 0
        assert done.exception is not None
        return f"{done.output}{type(done.exception).__name__}: {done.exception}"

    assert "Missing option '--bundle'" in said()
    assert "brings its own" in said("--demo", *bundle, "--qdrant", nowhere)
    assert re.search("BundleError: .*does not exist", said("--bundle", nowhere))
    assert re.search("ConfigurationError: --source-root", said(*bundle, "--source-root", nowhere))
    assert re.search("StoreError: .*no such folder", said(*bundle, "--qdrant", nowhere))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert re.search("ConfigurationError: .*choose another --port", said(*bundle, "--port", port))


def test_the_demo_serves_drawings_with_any_bundle(clip: Exported, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "BROWSER": "true"}
    with serving("--demo", "--bundle", clip.folder, cwd=tmp_path, env=env) as served:
        found = served.http.get("/v1/collection").json()
        assert found["images"] == 320 + 51
        facets = {one["field"]: len(one["values"]) for one in served.post("/v1/facets", {}).json()["facets"]}
        assert facets["colour"] == 6
        assert facets["shape"] == 6
        (hit,) = served.search(text="a red circle", limit=1)["hits"]
        assert served.http.get(hit["thumbnail"]).status_code == 200


def test_a_demo_without_a_model_says_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mcip_qdrant.cli import serve_demo
    from mcip_qdrant.errors import MissingExtraError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(serve_demo, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"--bundle DIR.*\[cpu,export,serve\]"):
        serve_demo.demo_archive(None)


def test_the_demo_finds_what_words_say_and_other_views(tmp_path: Path) -> None:
    from mcip_qdrant.world.captions import Claim, Mention
    from mcip_qdrant.world.drawn import DrawnArchive

    env = {"XDG_CACHE_HOME": str(tmp_path), "BROWSER": "true"}
    with serving("--demo", cwd=tmp_path, env=env) as served:
        home = tmp_path / "mcip-qdrant" / "demo"
        archive = DrawnArchive(home / "drawn" / "scenes", home / "queries")
        first, *_ = served.search(text="a red circle", limit=5)["hits"]
        assert archive.shows(first["key"], Claim(Mention("red", "circle")))
        right = 0
        for query in archive.picture_queries:
            url = "data:image/jpeg;base64," + base64.b64encode(query.read_bytes()).decode()
            (hit,) = served.search(image=url, limit=1)["hits"]
            right += archive.same_instance(hit["key"], query)
        assert right >= 0.8 * len(archive.picture_queries)
