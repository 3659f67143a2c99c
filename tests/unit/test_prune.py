"""Pruning never deletes what is only out of sight, and never what is not this source's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from unit_support import manifest

from mcip_qdrant import spill
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.errors import SourceError
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.prune import SeenImages, prune
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.source import FolderSource, ListingReport
from mcip_qdrant.store import Store

# A root without any file: whatever is not listed is gone.
ELSEWHERE = Path("/nonexistent")


@pytest.fixture
def sink() -> Iterator[QdrantSink]:
    store = Store.of(QdrantClient(":memory:"))
    ensure_collection(store, "images", manifest(), {})
    yield QdrantSink(store, "images")
    store.close()


def fill(sink: QdrantSink, source: str, count: int) -> list[ImageRef]:
    refs = [ImageRef(source, f"{number}.jpg") for number in range(count)]
    if refs:
        sink.upsert(
            [ref.point_id for ref in refs],
            np.ones((count, 3), np.float32),
            [{"source": source, "key": ref.key} for ref in refs],
        )
    return refs


def seen(refs: list[ImageRef]) -> SeenImages:
    images = SeenImages()
    assert list(images.watch(refs)) == refs
    return images


def keys(sink: QdrantSink, source: str) -> set[str]:
    return {key for _, key in sink.ids_of_source(source)}


def test_seen_images() -> None:
    images = seen([ImageRef("s", "a.jpg")])
    assert ImageRef("s", "a.jpg").point_id in images
    assert ImageRef("s", "b.jpg").point_id not in images
    assert ImageRef("t", "a.jpg").point_id not in images


def test_seen_images_pass_on_as_they_come() -> None:
    images = SeenImages()
    watched = images.watch(ImageRef("s", str(number)) for number in range(3))
    assert next(watched).relative == "0"
    assert ImageRef("s", "0").point_id in images
    assert ImageRef("s", "1").point_id not in images


def test_only_what_is_gone_goes(sink: QdrantSink) -> None:
    refs = fill(sink, "s", 10)
    fill(sink, "other", 3)
    assert prune(sink, "s", ELSEWHERE, seen(refs[2:]), ListingReport(), confirmed=False) == 2
    assert keys(sink, "s") == {ref.key for ref in refs[2:]}
    assert len(keys(sink, "other")) == 3


def test_nothing_gone(sink: QdrantSink) -> None:
    refs = fill(sink, "s", 3)
    assert prune(sink, "s", ELSEWHERE, seen(refs), ListingReport(), confirmed=False) == 0
    assert sink.count() == 3


def test_a_listing_error_forbids_it_even_when_confirmed(sink: QdrantSink) -> None:
    refs = fill(sink, "s", 10)
    for confirmed in (False, True):
        with pytest.raises(SourceError, match=r"1 folder\(s\) could not be listed.*/x: Permission denied"):
            prune(
                sink,
                "s",
                ELSEWHERE,
                seen(refs[1:]),
                ListingReport(errors=["/x: Permission denied"]),
                confirmed=confirmed,
            )
    assert sink.count() == 10


def test_a_source_that_vanished_as_a_whole(sink: QdrantSink, tmp_path: Path) -> None:
    fill(sink, "s", 4)
    listing, images = ListingReport(), SeenImages()
    assert list(images.watch(FolderSource("s", tmp_path / "unmounted")(listing))) == []
    with pytest.raises(SourceError, match="could not be listed"):
        prune(sink, "s", ELSEWHERE, images, listing, confirmed=True)
    # An empty mount point lists without an error.
    with pytest.raises(SourceError, match="4 of the 4 images"):
        prune(sink, "s", ELSEWHERE, SeenImages(), ListingReport(), confirmed=False)
    assert sink.count() == 4


@pytest.mark.parametrize("total", [5, 10, 15, 35, 100])
def test_a_fifth_may_go_and_one_more_may_not(sink: QdrantSink, total: int) -> None:
    refs = fill(sink, "s", total)
    fill(sink, "other", 500)  # other sources do not make a loss look small
    fifth = total // 5
    with pytest.raises(SourceError, match=rf"{fifth + 1} of the {total} images of source 's'.*--prune --yes"):
        prune(sink, "s", ELSEWHERE, seen(refs[fifth + 1 :]), ListingReport(), confirmed=False)
    assert len(keys(sink, "s")) == total
    assert prune(sink, "s", ELSEWHERE, seen(refs[fifth:]), ListingReport(), confirmed=False) == fifth
    assert len(keys(sink, "s")) == total - fifth


def test_more_goes_when_confirmed(sink: QdrantSink) -> None:
    refs = fill(sink, "s", 10)
    fill(sink, "t", 1)
    assert prune(sink, "s", ELSEWHERE, seen(refs[:1]), ListingReport(), confirmed=True) == 9
    assert keys(sink, "s") == {refs[0].key}
    assert prune(sink, "s", ELSEWHERE, SeenImages(), ListingReport(), confirmed=True) == 1
    assert keys(sink, "s") == set()
    assert sink.count() == 1


def test_a_source_without_points(sink: QdrantSink) -> None:
    fill(sink, "other", 2)
    assert prune(sink, "s", ELSEWHERE, SeenImages(), ListingReport(), confirmed=False) == 0
    assert sink.count() == 2


def test_points_of_other_software_stay(sink: QdrantSink) -> None:
    # An adopted collection may have points with a `source` of their own, and numbers as ids.
    refs = fill(sink, "s", 1)
    foreign = [
        models.PointStruct(id=7, vector=[1, 0, 0], payload={"source": "s"}),
        models.PointStruct(
            id="12345678-1234-5678-1234-567812345678", vector=[1, 0, 0], payload={"source": "s", "key": "s/x"}
        ),
        models.PointStruct(id=8, vector=[1, 0, 0], payload={"source": "s", "key": 5}),
    ]
    sink.store.call(lambda client: client.upsert("images", foreign))
    assert prune(sink, "s", ELSEWHERE, seen(refs), ListingReport(), confirmed=True) == 0
    assert prune(sink, "s", ELSEWHERE, SeenImages(), ListingReport(), confirmed=True) == 1
    assert {point for point, _ in sink.ids_of_source("s")} == {"7", "8", "12345678-1234-5678-1234-567812345678"}


def test_what_is_still_there_stays(sink: QdrantSink, tmp_path: Path) -> None:
    """A listing leaves out files whose suffix is no image's, and what lies behind a symbolic link to a folder."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "root").mkdir()
    for path in ("root/no-suffix", "root/100%", "root/kept.jpg", "beside/linked.jpg"):
        (tmp_path / path).touch()
    (tmp_path / "root" / "link").symlink_to("../beside")
    (tmp_path / "root" / "broken.jpg").symlink_to("nowhere")
    names = ["no-suffix", "100%25", "kept.jpg", "link/linked.jpg", "broken.jpg", "gone.jpg", "gone/x.jpg", "kept.jpg/x"]
    refs = [ImageRef("s", name) for name in names]
    sink.upsert(
        [ref.point_id for ref in refs],
        np.ones((len(refs), 3), np.float32),
        [{"source": "s", "key": ref.key} for ref in refs],
    )
    assert prune(sink, "s", tmp_path / "root", seen(refs[2:3]), ListingReport(), confirmed=True) == 3
    assert keys(sink, "s") == {ref.key for ref in refs[:5]}


def test_very_many_images(sink: QdrantSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 20)
    refs = fill(sink, "s", 200)
    assert prune(sink, "s", ELSEWHERE, seen(refs[::2]), ListingReport(), confirmed=True) == 100
    assert keys(sink, "s") == {ref.key for ref in refs[::2]}
