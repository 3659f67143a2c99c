"""Collections of other software: adopted only if they hold this model's vectors, which a probe of their own images shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import run
from conftest import Exported
from numpy.typing import NDArray
from photos import write_archive
from PIL import Image
from qdrant_client import QdrantClient, models
from services import qdrant_server

from mcip_qdrant import ForeignCollectionError, ImageCollection, QueryEncoder, SpaceMismatchError, StoreError, adopt
from mcip_qdrant.adoption import PROBED, Probe
from mcip_qdrant.keys import file_uri

COUNT = 20


@pytest.fixture(scope="module")
def encoder(clip: Exported) -> Iterator[QueryEncoder]:
    with QueryEncoder.open(clip.folder, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_archive(tmp_path_factory.mktemp("photos"), COUNT)


@pytest.fixture(scope="module")
def vectors(photos: list[Path], encoder: QueryEncoder) -> NDArray[np.float32]:
    return encoder.images(photos)


@pytest.fixture(scope="module", params=["local", "http"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantClient]:
    if request.param == "local":
        client = QdrantClient(":memory:")
        yield client
        client.close()
        return
    with qdrant_server(tmp_path_factory.mktemp("qdrant")) as service:
        client = QdrantClient(url=service.url, timeout=20, check_compatibility=False)
        yield client
        client.close()


def fill(client: QdrantClient, vectors: Any, payloads: list[dict[str, Any]], *, lengths: float = 1.0) -> None:
    """A collection `foreign`, as other software makes them: numbers as ids, vectors of any length."""
    client.delete_collection("foreign")
    client.create_collection("foreign", vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE))
    rows = (np.asarray(vectors) * lengths).tolist()
    if rows:
        client.upsert("foreign", models.Batch(ids=list(range(len(rows))), vectors=rows, payloads=payloads))


def is_ours(client: QdrantClient) -> bool:
    return "mcip_qdrant" in (client.get_collection("foreign").config.metadata or {})


NAMING: dict[str, Any] = {
    "uri": lambda path: {"uri": file_uri(str(path))},
    "absolute path": lambda path: {"path": str(path)},
    "name below a root": lambda path: {"filename": path.name},
    "root's name and path": lambda path: {"key": f"mine/{path.name}"},
    "useless fields first": lambda path: {"uri": "https://example.org/a.jpg", "key": 7, "path": "", "file": path.name},
}


@pytest.mark.parametrize("naming", NAMING.values(), ids=NAMING)
def test_its_own_images_give_its_vectors(
    client: QdrantClient, encoder: QueryEncoder, photos: list[Path], vectors: Any, naming: Any
) -> None:
    fill(client, vectors, [naming(path) for path in photos], lengths=3.5)
    images = ImageCollection(client, "foreign", encoder)
    with pytest.raises(ForeignCollectionError, match="mcip-qdrant adopt"):
        images.search(text="a")
    found = adopt(client, "foreign", encoder, roots={"mine": photos[0].parent})
    assert found is not None
    assert (len(found.cosines), found.agreeing, found.sampled) == (PROBED, PROBED, COUNT)
    assert min(found.cosines.values()) > 0.99999
    assert is_ours(client)
    hit = images.search(image=photos[4], limit=1)[0]
    assert (hit.id, round(hit.score, 4)) == ("4", 1.0)
    assert adopt(client, "foreign", encoder) is None  # twice does no harm, and needs no file


def test_a_field_of_its_own(client: QdrantClient, encoder: QueryEncoder, photos: list[Path], vectors: Any) -> None:
    fill(client, vectors, [{"picture": path.name} for path in photos])
    roots = {"mine": photos[0].parent}
    with pytest.raises(
        ForeignCollectionError, match=r"only 0 lead to an image.*--source-root.*--path-field.*--without-probe"
    ):
        adopt(client, "foreign", encoder, roots=roots)
    assert not is_ours(client)
    assert adopt(client, "foreign", encoder, roots=roots, path_field="picture")
    assert is_ours(client)


def test_another_models_vectors_of_the_same_size_are_refused(
    client: QdrantClient, encoder: QueryEncoder, other_clip: Exported, photos: list[Path]
) -> None:
    with QueryEncoder.open(other_clip.folder, device="cpu") as other:
        fill(client, other.images(photos), [{"path": str(path)} for path in photos])
    with pytest.raises(
        SpaceMismatchError, match=r"does not hold the vectors of tiny-clip: \d of 16 images.*80%.*Another model"
    ):
        adopt(client, "foreign", encoder)
    assert not is_ours(client)


def test_the_same_model_with_other_preprocessing_is_refused(
    client: QdrantClient, encoder: QueryEncoder, photos: list[Path]
) -> None:
    """BGR for RGB: the most common way to get it wrong."""
    swapped = [np.asarray(Image.open(path))[:, :, ::-1].copy() for path in photos]
    fill(client, encoder.images(swapped), [{"path": str(path)} for path in photos])
    with pytest.raises(SpaceMismatchError):
        adopt(client, "foreign", encoder)
    assert not is_ours(client)


@pytest.mark.parametrize("changed", [3, 4])
def test_files_that_changed_since_are_let_through_up_to_one_in_five(
    client: QdrantClient, encoder: QueryEncoder, photos: list[Path], vectors: Any, changed: int
) -> None:
    spoilt = vectors[:PROBED].copy()
    spoilt[:changed] = -spoilt[:changed]
    fill(client, spoilt, [{"path": str(path)} for path in photos[:PROBED]])
    if changed == 3:
        found = adopt(client, "foreign", encoder)
        assert found is not None
        assert (found.agreeing, len(found.cosines)) == (13, 16)
    else:
        with pytest.raises(SpaceMismatchError, match="12 of 16 images"):
            adopt(client, "foreign", encoder)
    assert is_ours(client) is (changed == 3)


def test_too_few_files_prove_nothing(
    client: QdrantClient, encoder: QueryEncoder, photos: list[Path], vectors: Any, tmp_path: Path
) -> None:
    payloads = [{"path": str(path) if number < 3 else f"/nowhere/{number}.jpg"} for number, path in enumerate(photos)]
    (tmp_path / "broken.jpg").write_text("<html>")
    payloads[5] = {"path": str(tmp_path / "broken.jpg")}
    payloads[6] = {"path": str(tmp_path)}
    payloads[7] = {"path": "a\0b"}
    payloads[8] = {"path": "x" * 5000}
    fill(client, vectors, payloads)
    with pytest.raises(ForeignCollectionError, match="only 3 lead to an image.*at least 4"):
        adopt(client, "foreign", encoder, roots={"r": tmp_path})
    assert adopt(client, "foreign", encoder, without_probe=True) is None
    assert is_ours(client)


def test_small_and_empty_collections(
    client: QdrantClient, encoder: QueryEncoder, photos: list[Path], vectors: Any
) -> None:
    fill(client, vectors[:2], [{"path": str(path)} for path in photos[:2]])
    found = adopt(client, "foreign", encoder)
    assert found is not None
    assert len(found.cosines) == found.sampled == 2
    fill(client, [], [])
    assert adopt(client, "foreign", encoder) == Probe({}, 0)
    assert is_ours(client)


def test_what_cannot_be_ours(client: QdrantClient, encoder: QueryEncoder, other_clip: Exported) -> None:
    with pytest.raises(StoreError, match="no collection 'nowhere' to adopt"):
        adopt(client, "nowhere", encoder)
    fill(client, [], [])
    adopt(client, "foreign", encoder)
    with QueryEncoder.open(other_clip.folder, device="cpu") as other:
        for flags in ({}, {"without_probe": True}):
            with pytest.raises(SpaceMismatchError, match=r"tiny-clip.*other-clip"):
                adopt(client, "foreign", other, **flags)  # type: ignore[arg-type]


def test_from_the_shell(
    clip: Exported, encoder: QueryEncoder, photos: list[Path], vectors: Any, tmp_path: Path
) -> None:
    local = QdrantClient(path=str(tmp_path / "qdrant"))
    fill(local, vectors, [{"name": path.name} for path in photos])
    local.close()
    shutil.copytree(photos[0].parent, tmp_path / "pictures")
    where = ("--bundle", clip.folder, "--collection", "foreign")
    refused = run("adopt", *where, cwd=tmp_path, expect=4)
    assert "cannot be probed" in refused.err
    said = run("adopt", *where, "--source-root", "pictures", "--path-field", "name", cwd=tmp_path)
    assert "probe: 16 of 16 images gave the stored vector (cosine at least 0.98; lowest 1.0000" in said.err
    assert "collection 'foreign' now belongs to tiny-clip" in said.out
    assert len(run("search", *where, "--text", "a", "--json", cwd=tmp_path).json) == 10
