"""Collections of other models and of other software."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_support import points, run, run_all
from conftest import Exported
from photos import write_archive
from qdrant_client import QdrantClient, models

from mcip_qdrant.bundle import Bundle


def test_another_model_of_the_same_dimension(
    library: Any, clip: Exported, other_clip: Exported, tmp_path: Path
) -> None:
    where = ("--qdrant", library.qdrant, "--bundle", other_clip.folder, "--device", "cpu")
    before = points(library.qdrant)
    for command in (
        ("ingest", library.folder),
        ("search", "--text", "a"),
        ("search", "--like", "photos/photo-0001.jpg"),
        ("adopt",),
    ):
        options = where if command != ("adopt",) else where[:4]
        refused = run(*command, *options, cwd=tmp_path, expect=4)
        assert refused.out == ""
        for exported in (clip, other_clip):
            bundle = Bundle.open(exported.folder)
            assert f"{bundle.manifest.model} (space_id {bundle.space_id[:12]})" in refused.err
    assert Bundle.open(clip.folder).embedding_dim == Bundle.open(other_clip.folder).embedding_dim
    assert points(library.qdrant) == before


def _foreign(folder: Path, vectors: Any) -> None:
    client = QdrantClient(path=str(folder))
    client.create_collection("images", vectors_config=vectors)
    if isinstance(vectors, models.VectorParams) and vectors.size == 32:
        point = models.PointStruct(id=7, vector=[1.0, *[0.0] * 31], payload={"source": "photos", "mine": True})
        client.upsert("images", [point], wait=True)
    client.close()


def test_a_collection_of_other_software(clip: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BUNDLE", str(clip.folder))
    write_archive(tmp_path / "photos", 5)
    _foreign(tmp_path / "qdrant", models.VectorParams(size=32, distance=models.Distance.COSINE))
    for command in (("ingest", "photos"), ("search", "--text", "a")):
        refused = run(*command, cwd=tmp_path, expect=4)
        assert "was not made by mcip-qdrant" in refused.err
        assert re.search(r"mcip-qdrant adopt --qdrant (\./)?qdrant --collection images --bundle BUNDLE", refused.err)
    assert len(points(tmp_path / "qdrant")) == 1
    refused = run("adopt", "--collection", "images", cwd=tmp_path, expect=4)
    assert re.search(
        r"of 1 sampled points only 0 lead to an image.*--source-root.*--path-field.*--without-probe", refused.err
    )
    adopted = run("adopt", "--collection", "images", "--without-probe", cwd=tmp_path)
    assert "collection 'images' now belongs to tiny-clip" in adopted.out
    assert "WARNING: --without-probe: nothing shows" in adopted.err
    run("adopt", cwd=tmp_path)  # twice does no harm
    said = run("ingest", "photos", "--prune", "--json", cwd=tmp_path).json
    assert (said["embedded"], said["pruned"], said["points"]) == (5, 0, 6)  # what is not ours is never pruned
    hits = run("search", "--text", "a", "--json", cwd=tmp_path).json
    assert len(hits) == 6
    assert {"id": "7", "uri": ""}.items() <= next(hit for hit in hits if hit["payload"].get("mine")).items()
    run("search", "--text", "a", "--sheet", "s.png", cwd=tmp_path)  # no file behind one of them


def test_collections_that_cannot_be_adopted(clip: Exported, tmp_path: Path) -> None:
    cosine = models.Distance.COSINE
    kinds = {
        "size 33": models.VectorParams(size=33, distance=cosine),
        "Dot vectors": models.VectorParams(size=32, distance=models.Distance.DOT),
        "named vectors (clip)": {"clip": models.VectorParams(size=32, distance=cosine)},
    }
    for words, vectors in kinds.items():
        _foreign(tmp_path / words, vectors)
    adopt = ("adopt", "--bundle", clip.folder, "--qdrant")
    for words, refused in zip(kinds, run_all([(*adopt, name) for name in kinds], cwd=tmp_path, expect=4), strict=True):
        assert words in refused.err
    refused = run("search", "--text", "a", "--bundle", clip.folder, "--qdrant", "size 33", cwd=tmp_path, expect=4)
    assert "gives Cosine vectors of size 32" in refused.err
    refused = run("adopt", "--bundle", clip.folder, "--qdrant", "size 33", "--collection", "x", cwd=tmp_path, expect=1)
    assert "has no collection 'x' to adopt" in refused.err
    run("adopt", "--bundle", clip.folder, "--qdrant", "none", cwd=tmp_path, expect=1)
    assert not (tmp_path / "none").exists()


def test_an_embedded_folder_that_is_damaged(library: Any, tmp_path: Path) -> None:
    shutil.copytree(library.qdrant, tmp_path / "qdrant")
    (storage,) = (tmp_path / "qdrant").rglob("storage.sqlite")
    storage.write_bytes(os.urandom(5000))
    refused = run("search", "--bundle", library.bundle, "--text", "a", cwd=tmp_path, expect=1)
    assert "./qdrant" in refused.err
    assert "not a database" in refused.err
    (tmp_path / "qdrant/meta.json").write_text("{")
    assert "./qdrant" in run("search", "--bundle", library.bundle, "--text", "a", cwd=tmp_path, expect=1).err
