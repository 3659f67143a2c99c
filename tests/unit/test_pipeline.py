"""The pipeline with real pictures, real threads and a real collection; only the model is a predictable one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from unit_support import MeanColour, manifest, picture

from mcip_qdrant import pipeline
from mcip_qdrant.collection import ensure_collection
from mcip_qdrant.errors import ConfigurationError, ImageError, Reason, StoreError
from mcip_qdrant.keys import ImageRef, encode_path
from mcip_qdrant.pipeline import Hooks, PipelineSettings, run
from mcip_qdrant.points import RunStamp
from mcip_qdrant.read import read_image
from mcip_qdrant.report import DeadLetter, RunReport
from mcip_qdrant.sink import QdrantSink
from mcip_qdrant.source import FolderSource, ListingReport
from mcip_qdrant.stages import Encoder
from mcip_qdrant.store import Store, open_store

pytestmark = pytest.mark.timeout(60)


class Archive:
    """A folder of pictures, and a collection to bring them into."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root = root
        self.sink = QdrantSink(store, "images")
        self.letters: list[DeadLetter] = []
        self.runs = 0

    def settings(self, **options: Any) -> PipelineSettings:
        self.runs += 1
        stamp = RunStamp(f"run-{self.runs}", "2025-01-01T00:00:00Z", "exact")
        chosen: dict[str, Any] = {"batch_size": 4, "decode_threads": 2, **options}
        return PipelineSettings(stamp=stamp, roots={"s": self.root}, preprocess=manifest().preprocess, **chosen)

    def refs(self) -> list[ImageRef]:
        return list(FolderSource("s", self.root)(ListingReport()))

    def run(
        self,
        refs: Iterable[ImageRef] | None = None,
        encoder: Encoder | None = None,
        sink: Any = None,
        should_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> RunReport:
        self.letters = []
        hooks = Hooks(on_failure=self.letters.append, should_stop=should_stop)
        report = run(
            self.refs() if refs is None else refs,
            encoder or MeanColour(),
            sink or self.sink,
            self.settings(**options),
            hooks,
        )
        assert report.failed == len(self.letters)
        assert report.replaced <= report.embedded
        assert report.updated <= report.unchanged
        if not report.interrupted:
            assert report.submitted == report.embedded + report.unchanged + report.failed == report.done
        return report

    def points(self) -> dict[str, tuple[list[float], dict[str, Any]]]:
        records, rest = self.sink.store.call(lambda client: client.scroll("images", limit=10_000, with_vectors=True))
        assert rest is None
        found = {}
        for record in records:
            payload = record.payload or {}
            assert record.id == ImageRef("s", payload["key"].removeprefix("s/")).point_id
            found[payload["key"]] = (record.vector, payload)
        return found

    def payload(self, name: str) -> dict[str, Any]:
        return self.points()[f"s/{name}"][1]

    def reasons(self) -> dict[str, Reason]:
        assert all(letter.message for letter in self.letters)
        return {letter.key: letter.reason for letter in self.letters}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Store.of(QdrantClient(":memory:"))
    ensure_collection(store, "images", manifest(), {})
    (tmp_path / "root").mkdir()
    yield Archive(tmp_path / "root", store)
    store.close()


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    names = ("decode", "upsert", "lookup")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(names)] == []


def colour(number: int) -> tuple[int, int, int]:
    """A colour whose direction differs from that of every other number below 600."""
    return 255 - number % 25, 5 + 10 * (number % 25), 5 + 10 * (number // 25)


def fill(root: Path, count: int, start: int = 0) -> list[str]:
    names = [f"{number:04d}.png" for number in range(start, start + count)]
    for number, name in enumerate(names, start):
        picture(root / name, colour(number))
    return names


def test_nothing(archive: Archive) -> None:
    encoder = MeanColour()
    report = archive.run([], encoder)
    assert (report.submitted, report.done, report.interrupted) == (0, 0, False)
    assert encoder.batches == []
    assert archive.points() == {}


@pytest.mark.parametrize("threads", [1, 5])
def test_each_vector_goes_to_its_image(archive: Archive, threads: int) -> None:
    count = 310  # more than one look-up, and no whole number of batches
    assert len({np.round(np.array(colour(n)) / np.linalg.norm(colour(n)), 5).tobytes() for n in range(count)}) == count
    names = fill(archive.root, count)
    for index in range(0, count, 7):
        # Large and small pictures mixed: they leave the decode threads in another order than they entered.
        picture(archive.root / names[index], colour(index), (700, 500))
    broken = names[5::31]
    for name in broken:
        (archive.root / name).write_bytes(b"no picture")
    encoder = MeanColour()
    report = archive.run(encoder=encoder, batch_size=8, decode_threads=threads)
    assert (report.submitted, report.embedded, report.failed) == (count, count - len(broken), len(broken))
    assert (report.replaced, report.unchanged) == (0, 0)
    assert set(encoder.batches[:-1]) == {8}
    assert sum(encoder.batches) == count - len(broken)
    points = archive.points()
    assert set(points) == {f"s/{name}" for name in names if name not in broken}
    for number, name in enumerate(names):
        if name not in broken:
            expected = np.array(colour(number)) / np.linalg.norm(colour(number))
            assert np.allclose(points[f"s/{name}"][0], expected, atol=1e-5), name
    assert {name.removeprefix("s/") for name in archive.reasons()} == set(broken)


def test_the_payload_describes_the_file(archive: Archive) -> None:
    name = b"sub/caf\xe9 100%.jpg"
    (archive.root / "sub").mkdir()
    picture(archive.root / os.fsdecode(name), (200, 10, 10), (40, 20))
    report = archive.run(columns=lambda ref: {"tag": ref.relative})
    assert report.embedded == 1
    ((key, (_, payload)),) = archive.points().items()
    read = read_image(archive.root, ImageRef("s", encode_path(name)), max_bytes=10**6)
    assert key == "s/sub/caf%E9 100%25.jpg"
    assert payload == {
        "key": key,
        "source": "s",
        "uri": f"file://{archive.root}/sub/caf%E9 100%25.jpg",
        "sha256": read.sha256,
        "width": 40,
        "height": 20,
        "format": "JPEG",
        "bytes": len(read.data),
        "modified_at": read.state.modified_at,
        "ingested_at": "2025-01-01T00:00:00Z",
        "run_id": "run-1",
        "decode": "exact",
        "tag": "sub/caf%E9 100%25.jpg",
    }


def test_one_bad_image_never_costs_its_neighbours(archive: Archive) -> None:
    fill(archive.root, 12)
    whole = (archive.root / "0003.png").read_bytes()
    (archive.root / "0003.png").write_bytes(whole[:50])
    report = archive.run()
    assert (report.embedded, report.failed) == (11, 1)
    assert archive.reasons() == {"s/0003.png": Reason.CORRUPT}
    assert len(archive.points()) == 11
    # Repaired, it goes in; the others are left alone.
    (archive.root / "0003.png").write_bytes(whole)
    report = archive.run()
    assert (report.embedded, report.replaced, report.unchanged, report.failed) == (1, 0, 11, 0)


def test_every_kind_of_failure_has_its_reason(archive: Archive) -> None:
    root = archive.root
    fill(root, 2)
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("hello")
    (root / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    (root / "large.png").write_bytes(b"x" * 5000)
    picture(root / "pixels.png", (1, 2, 3), (300, 300))
    picture(root / "black.png", (0, 0, 0))
    (root / "dangling.jpg").symlink_to("nowhere")
    (root / "out.jpg").symlink_to("/etc/hostname")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    extra = [ImageRef("s", "folder.jpg"), ImageRef("s", "pipe.jpg"), ImageRef("s", "nul%00.jpg")]
    limits = replace(pipeline.DecodeLimits(), max_bytes=4000, max_pixels=80_000)
    report = archive.run([*archive.refs(), *extra], limits=limits)
    assert archive.reasons() == {
        "s/empty.jpg": Reason.EMPTY,
        "s/text.jpg": Reason.NOT_AN_IMAGE,
        "s/cut.jpg": Reason.CORRUPT,
        "s/large.png": Reason.TOO_LARGE,
        "s/pixels.png": Reason.TOO_MANY_PIXELS,
        "s/black.png": Reason.NOT_FINITE,
        "s/dangling.jpg": Reason.GONE,
        "s/out.jpg": Reason.OUTSIDE_ROOT,
        "s/folder.jpg": Reason.NOT_A_FILE,
        "s/pipe.jpg": Reason.NOT_A_FILE,
        "s/nul%00.jpg": Reason.GONE,
    }
    assert (report.submitted, report.embedded, report.failed) == (13, 2, 11)
    assert set(archive.points()) == {"s/0000.png", "s/0001.png"}


def test_all_corrupt(archive: Archive) -> None:
    for number in range(9):
        (archive.root / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    encoder = MeanColour()
    report = archive.run(encoder=encoder)
    assert (report.submitted, report.failed) == (9, 9)
    assert encoder.batches == []
    assert archive.points() == {}


def test_all_not_finite(archive: Archive) -> None:
    for number in range(5):
        picture(archive.root / f"{number}.png", (0, 0, 0))
    report = archive.run()
    assert (report.failed, report.embedded) == (5, 0)
    assert set(archive.reasons().values()) == {Reason.NOT_FINITE}
    assert archive.points() == {}


def test_a_picture_without_a_finite_vector_does_not_shift_the_others(archive: Archive) -> None:
    names = fill(archive.root, 8)
    for name in (names[1], names[6]):
        picture(archive.root / name, (0, 0, 0))
    archive.run()
    points = archive.points()
    assert set(points) == {f"s/{name}" for index, name in enumerate(names) if index not in {1, 6}}
    for index, name in enumerate(names):
        if index not in {1, 6}:
            assert np.allclose(
                points[f"s/{name}"][0], np.array(colour(index)) / np.linalg.norm(colour(index)), atol=1e-5
            )


def test_running_out_of_memory_is_a_dead_letter(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(archive.root, 3)

    def read(root: Path, ref: ImageRef, *, max_bytes: int) -> Any:
        if ref.relative == "0001.png":
            raise MemoryError
        return read_image(root, ref, max_bytes=max_bytes)

    monkeypatch.setattr("mcip_qdrant.prepare.read_image", read)
    report = archive.run()
    assert (report.embedded, archive.reasons()) == (2, {"s/0001.png": Reason.OUT_OF_MEMORY})


def test_a_file_that_vanishes_after_the_listing(archive: Archive) -> None:
    fill(archive.root, 5)

    def refs() -> Iterator[ImageRef]:
        yield from archive.refs()
        (archive.root / "0002.png").unlink()

    report = archive.run(refs())
    assert (report.embedded, archive.reasons()) == (4, {"s/0002.png": Reason.GONE})


class Wrapped:
    """The mean colour, with something happening before each batch."""

    def __init__(self, before: Callable[[int], object]) -> None:
        self.inner, self.before = MeanColour(), before

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.before(sum(self.inner.batches))
        return self.inner.encode(pixels)


def test_a_file_that_vanishes_while_it_is_queued(archive: Archive) -> None:
    names = fill(archive.root, 60)
    archive.run(archive.refs()[-1:])  # known before, so that it is examined, found changed and then gone
    picture(archive.root / names[-1], (9, 9, 200))
    last = archive.root / names[-1]
    report = archive.run(encoder=Wrapped(lambda _done: last.unlink(missing_ok=True)), batch_size=2, decode_threads=1)
    assert (report.submitted, report.embedded) == (60, 59)
    assert archive.reasons() == {f"s/{names[-1]}": Reason.GONE}
    assert archive.points()[f"s/{names[-1]}"][1]["run_id"] == "run-1"


def test_unchanged_images_are_not_even_read(archive: Archive) -> None:
    names = fill(archive.root, 6)
    archive.run()
    before = archive.points()
    path = archive.root / names[0]
    times = path.stat()
    path.write_bytes(b"?" * times.st_size)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    encoder = MeanColour()
    report = archive.run(encoder=encoder)
    assert (report.submitted, report.unchanged, report.embedded, report.updated) == (6, 6, 0, 0)
    assert encoder.batches == []
    assert report.seconds["read"] == 0
    assert archive.points() == before


@pytest.mark.parametrize("change", ["size", "time"])
def test_changed_images_are_replaced_and_keep_what_others_wrote(archive: Archive, change: str) -> None:
    names = fill(archive.root, 3)
    archive.run(columns=lambda _ref: {"tag": "old", "mine": 1})
    point = ImageRef("s", names[1]).point_id
    archive.sink.update_payloads({point: {"reviewed": {"by": "somebody"}}})
    path = archive.root / names[1]
    if change == "size":
        times = path.stat()
        picture(path, (0, 0, 255), (500, 400))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        picture(path, (0, 0, 255))
        os.utime(path, ns=(0, 10**18))
    report = archive.run(columns=lambda ref: {"tag": "new"} if ref.relative == names[1] else {})
    assert (report.embedded, report.replaced, report.unchanged, report.updated) == (1, 1, 2, 0)
    vector, payload = archive.points()[f"s/{names[1]}"]
    assert np.allclose(vector, [0, 0, 1])
    assert {name: payload[name] for name in ("reviewed", "tag", "mine", "run_id")} == {
        "reviewed": {"by": "somebody"},
        "tag": "new",
        "mine": 1,
        "run_id": "run-2",
    }
    assert archive.payload(names[0])["run_id"] == "run-1"
    assert archive.run().unchanged == 3


def test_checksum_looks_at_bytes_and_at_nothing_else(archive: Archive) -> None:
    names = fill(archive.root, 5)
    archive.run()
    os.utime(archive.root / names[0], ns=(0, 10**18))  # touched only
    path = archive.root / names[1]
    times, size = path.stat(), path.stat().st_size
    path.write_bytes(b"?" * size)  # rotten, and neither size nor time tells
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    picture(archive.root / names[2], (0, 0, 255))
    (archive.root / names[3]).unlink()
    refs = [ImageRef("s", name) for name in names]
    encoder = MeanColour()
    report = archive.run(refs, encoder, checksum=True, columns=lambda ref: {"n": 1} if ref.relative == names[4] else {})
    assert (report.embedded, report.replaced, report.unchanged, report.updated, report.failed) == (1, 1, 2, 2, 2)
    # The touched file's new time is noted, so that the next run need not read it again.
    assert archive.payload(names[0])["modified_at"].startswith("2001-09-09")
    assert archive.reasons() == {f"s/{names[1]}": Reason.NOT_AN_IMAGE, f"s/{names[3]}": Reason.GONE}
    assert encoder.batches == [1]
    assert archive.payload(names[2])["run_id"] == "run-2"
    assert archive.payload(names[4])["n"] == 1
    assert archive.payload(names[4])["run_id"] == "run-1"


def test_columns_that_changed_their_type(archive: Archive) -> None:
    """Equal for Python, but not for a filter."""
    fill(archive.root, 1)
    archive.run()
    for value in (0, False, 0.0, [1], [True], {"a": 1}, {"a": 1.0}):
        assert archive.run(columns=lambda _ref, value=value: {"flag": value}).updated == 1
        assert archive.run(columns=lambda _ref, value=value: {"flag": value}).updated == 0
        ((_, payload),) = archive.points().values()
        assert repr(payload["flag"]) == repr(value)


def test_changed_columns_of_unchanged_images(archive: Archive) -> None:
    names = fill(archive.root, 5)
    archive.run(columns=lambda _ref: {"tag": "old", "n": 1})
    before = archive.points()

    def columns(ref: ImageRef) -> Mapping[str, Any]:
        return {names[1]: {"tag": "new", "n": 1}, names[2]: {"extra": [1, {"a": 2}]}, names[3]: {"tag": "old"}}.get(
            ref.relative, {}
        )

    encoder = MeanColour()
    report = archive.run(encoder=encoder, columns=columns)
    assert (report.unchanged, report.updated, report.embedded) == (5, 2, 0)
    assert encoder.batches == []
    expected = {key: (vector, dict(payload)) for key, (vector, payload) in before.items()}
    expected[f"s/{names[1]}"][1]["tag"] = "new"
    expected[f"s/{names[2]}"][1]["extra"] = [1, {"a": 2}]
    assert archive.points() == expected
    assert archive.run(columns=columns).updated == 0


@pytest.mark.parametrize("checksum", [False, True])
def test_a_moved_archive_is_not_embedded_again_but_found_again(archive: Archive, checksum: bool) -> None:
    names = fill(archive.root, 3)
    archive.run(columns=lambda _ref: {"tag": "kept"})
    before = archive.points()
    archive.root = archive.root.rename(archive.root.parent / "moved")
    encoder = MeanColour()
    report = archive.run(encoder=encoder, checksum=checksum)
    assert (report.unchanged, report.updated, encoder.batches) == (3, 3, [])
    for name in names:
        old, new = before[f"s/{name}"][1], archive.payload(name)
        assert new == {**old, "uri": f"file://{archive.root}/{name}"} != old
    assert archive.run(checksum=checksum).updated == 0


def test_columns_are_asked_for_every_image(archive: Archive) -> None:
    # So that the count of rows without image is right: failed images have been listed, too.
    names = fill(archive.root, 3)
    (archive.root / names[1]).write_bytes(b"no picture")
    for _ in range(2):
        asked: set[str] = set()

        def columns(ref: ImageRef, asked: set[str] = asked) -> Mapping[str, Any]:
            asked.add(ref.relative)
            return {}

        archive.run(columns=columns)
        assert asked == set(names)


def test_stopping_early_and_going_on(archive: Archive) -> None:
    fill(archive.root, 60)
    stop = threading.Event()

    def before(done: int) -> None:
        if done >= 8:
            time.sleep(0.1)  # all that may be decoded ahead is ready, and would be easy to take along
            stop.set()

    encoder = Wrapped(before)
    report = archive.run(encoder=encoder, should_stop=stop.is_set)
    assert report.interrupted
    # What the encoder was given is written (one batch in its hands, two that wait), nothing is begun after it, nothing is lost.
    embedded = report.embedded
    assert embedded == sum(encoder.inner.batches) == len(archive.points())
    assert 12 <= embedded <= 12 + 2 * 4
    assert report.done < report.submitted
    report = archive.run()
    assert (report.interrupted, report.embedded, report.unchanged, report.replaced) == (
        False,
        60 - embedded,
        embedded,
        0,
    )
    assert len(archive.points()) == 60


def test_stopping_before_the_start(archive: Archive) -> None:
    fill(archive.root, 10)
    encoder = MeanColour()
    report = archive.run(encoder=encoder, should_stop=lambda: True)
    assert report.interrupted
    assert (report.done, encoder.batches, archive.points()) == (0, [], {})


def test_stopping_among_unchanged_images(archive: Archive) -> None:
    # An archive that is nearly complete: nothing reaches the encoder, and Ctrl-C must work all the same.
    fill(archive.root, 1)
    archive.run()
    listed = [0]

    def refs() -> Iterator[ImageRef]:
        for _ in range(20 * pipeline.LOOKUP_BATCH):
            listed[0] += 1
            yield ImageRef("s", "0000.png")

    report = archive.run(refs(), should_stop=lambda: listed[0] > 3 * pipeline.LOOKUP_BATCH)
    assert report.interrupted
    assert listed[0] <= 5 * pipeline.LOOKUP_BATCH


def test_look_ahead_is_bounded(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, threads, count = 4, 3, 80
    fill(archive.root, count)
    started, ahead, lock = [0], [], threading.Lock()

    def read(root: Path, ref: ImageRef, *, max_bytes: int) -> Any:
        with lock:
            started[0] += 1
        return read_image(root, ref, max_bytes=max_bytes)

    def slow(done: int) -> None:
        time.sleep(0.02)
        ahead.append(started[0] - done)

    monkeypatch.setattr("mcip_qdrant.prepare.read_image", read)
    report = archive.run(encoder=Wrapped(slow), batch_size=batch, decode_threads=threads)
    assert report.embedded == started[0] == count
    # One batch in the encoder's hands, two that wait for it, plus two batches and one picture per thread.
    assert max(ahead) <= 5 * batch + threads
    assert max(ahead) > batch, "nothing was decoded while the encoder was busy"


def test_the_listing_is_not_read_far_ahead(archive: Archive) -> None:
    picture(archive.root / "0000.png", (0, 0, 0))  # never written, so it comes to the encoder each time
    listed, early = [0], []

    def refs() -> Iterator[ImageRef]:
        for _ in range(8 * pipeline.LOOKUP_BATCH):
            listed[0] += 1
            yield ImageRef("s", "0000.png")

    encoder = Wrapped(lambda done: early.append(listed[0] - done))
    report = archive.run(refs(), encoder, batch_size=64)
    assert report.failed == sum(encoder.inner.batches) == 8 * pipeline.LOOKUP_BATCH
    assert early
    assert max(early) <= 3 * pipeline.LOOKUP_BATCH


class BrokenSink:
    """A real sink of which one operation fails after some calls."""

    def __init__(self, sink: QdrantSink, operation: str, after: int = 0) -> None:
        self.sink, self.operation, self.left = sink, operation, after

    def _pass(self, operation: str) -> None:
        if operation == self.operation:
            if self.left == 0:
                raise StoreError("the store is gone")
            self.left -= 1

    def known(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        self._pass("known")
        return self.sink.known(ids)

    def upsert(self, ids: Sequence[str], vectors: NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> None:
        self._pass("upsert")
        self.sink.upsert(ids, vectors, payloads)

    def update_payloads(self, changes: Mapping[str, dict[str, Any]]) -> None:
        self._pass("update_payloads")
        self.sink.update_payloads(changes)


@pytest.mark.parametrize(
    ("operation", "after", "written"), [("known", 0, 0), ("known", 1, None), ("upsert", 0, 0), ("upsert", 3, 12)]
)
def test_errors_of_the_store_end_the_run(archive: Archive, operation: str, after: int, written: int | None) -> None:
    count = 300 if operation == "known" else 40
    fill(archive.root, count)
    encoder = MeanColour()
    with pytest.raises(StoreError, match="the store is gone"):
        archive.run(encoder=encoder, sink=BrokenSink(archive.sink, operation, after))
    if written is not None:
        assert len(archive.points()) == written
    assert sum(encoder.batches) < count
    # What was written stays, and a new run continues.
    before = len(archive.points())
    report = archive.run()
    assert (report.unchanged, report.embedded) == (before, count - before)


def test_an_error_in_the_last_write_is_not_lost(archive: Archive) -> None:
    fill(archive.root, 9)
    with pytest.raises(StoreError, match="the store is gone"):
        archive.run(sink=BrokenSink(archive.sink, "upsert", 2))
    assert len(archive.points()) == 8


def test_an_error_while_columns_are_updated(archive: Archive) -> None:
    fill(archive.root, 3)
    archive.run()
    for checksum in (False, True):
        with pytest.raises(StoreError, match="the store is gone"):
            archive.run(
                sink=BrokenSink(archive.sink, "update_payloads"), columns=lambda _ref: {"a": 1}, checksum=checksum
            )


def test_errors_of_everybody_else_end_the_run_too(archive: Archive) -> None:
    fill(archive.root, 30)

    def broken(_done: int) -> None:
        raise ConfigurationError("no device")

    def refs() -> Iterator[ImageRef]:
        yield from archive.refs()[:20]
        raise OSError("the list broke off")

    def hook(_letter: DeadLetter) -> None:
        raise OSError("disk full")

    with pytest.raises(ConfigurationError, match="no device"):
        archive.run(encoder=Wrapped(broken))
    with pytest.raises(OSError, match="broke off"):
        archive.run(refs())
    (archive.root / "0000.png").write_bytes(b"x")
    with pytest.raises(OSError, match="disk full"):
        run(archive.refs(), MeanColour(), archive.sink, archive.settings(), Hooks(on_failure=hook))


def test_a_defect_in_a_decode_thread_is_not_swallowed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(archive.root, 3)

    def read(_root: Path, ref: ImageRef, *, max_bytes: int) -> Any:
        raise ZeroDivisionError(ref.relative)

    monkeypatch.setattr("mcip_qdrant.prepare.read_image", read)
    with pytest.raises(ZeroDivisionError, match=r"0000\.png"):
        archive.run()


def test_hooks_are_called_in_the_callers_thread_and_counts_only_grow(archive: Archive) -> None:
    fill(archive.root, 10)
    (archive.root / "0004.png").write_bytes(b"x")
    archive.run(archive.refs()[:3])
    seen: list[int] = []
    threads: set[int] = set()

    def progress(report: RunReport) -> None:
        seen.append(report.done)
        threads.add(threading.get_ident())

    def stop() -> bool:
        threads.add(threading.get_ident())
        return False

    hooks = Hooks(on_progress=progress, on_failure=lambda _letter: threads.add(threading.get_ident()), should_stop=stop)
    report = run(archive.refs(), MeanColour(), archive.sink, archive.settings(), hooks)
    assert (report.unchanged, report.embedded, report.failed) == (3, 6, 1)
    assert seen == sorted(seen)
    assert seen[-1] == 10
    assert threads == {threading.get_ident()}


def test_stages_are_timed(archive: Archive) -> None:
    fill(archive.root, 6)
    report = archive.run(encoder=Wrapped(lambda _done: time.sleep(0.05)))
    assert all(seconds > 0 for seconds in report.seconds.values())
    assert report.seconds["encode"] >= 0.1
    assert sum(report.shares().values()) == pytest.approx(1)
    assert set(RunReport().shares().values()) == {0.0}


def test_one_image_named_twice_is_one_point(archive: Archive) -> None:
    fill(archive.root, 2)
    report = archive.run([*archive.refs(), *archive.refs()])
    assert report.submitted == report.done == 4
    assert len(archive.points()) == 2


def test_two_sources_in_one_run(archive: Archive, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    picture(archive.root / "a.png", (255, 0, 0))
    picture(other / "a.png", (0, 0, 255))
    settings = replace(archive.settings(), roots={"s": archive.root, "t": other})
    refs = [ImageRef("s", "a.png"), ImageRef("t", "a.png")]
    assert run(refs, MeanColour(), archive.sink, settings).embedded == 2
    known = archive.sink.known([ref.point_id for ref in refs])
    assert [known[ref.point_id]["uri"] for ref in refs] == [f"file://{archive.root}/a.png", f"file://{other}/a.png"]


def test_into_a_folder_on_disk(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fill(root, 30)
    for number, expected in enumerate(((30, 0), (0, 30))):
        store = open_store(str(tmp_path / "q"))
        ensure_collection(store, "images", manifest(), {})
        archive = Archive(root, store)
        archive.runs = number
        report = archive.run(columns=lambda _ref: {"n": 1})
        assert (report.embedded, report.unchanged) == expected
        assert len(archive.points()) == 30
        store.close()


def test_an_attempt_repeated_under_the_same_run_id_counts_its_points_as_embedded(archive: Archive) -> None:
    fill(archive.root, 5)
    (archive.root / "0004.png").unlink()
    archive.run()
    (archive.root / "0009.png").write_bytes((archive.root / "0000.png").read_bytes())
    settled: list[ImageRef] = []
    for checksum in (False, True):
        stamp = RunStamp("run-1", "2025-01-02T00:00:00Z", "exact")
        settings = replace(archive.settings(checksum=checksum), stamp=stamp)
        report = run(archive.refs(), MeanColour(), archive.sink, settings, Hooks(on_settled=settled.extend))
        assert (report.submitted, report.embedded, report.unchanged) == (5, 5, 0)
        assert sorted(ref.key for ref in settled) == sorted(ref.key for ref in archive.refs())
        settled.clear()


@pytest.mark.parametrize("write_size", [1, 3, 10, 64])
def test_points_wait_for_company(archive: Archive, write_size: int) -> None:
    fill(archive.root, 23)
    writes: list[int] = []

    class Counting:
        known, update_payloads = archive.sink.known, archive.sink.update_payloads

        def upsert(self, ids: Any, vectors: Any, payloads: Any) -> None:
            writes.append(len(ids))
            archive.sink.upsert(ids, vectors, payloads)

    report = archive.run(sink=Counting(), write_size=write_size)
    assert (report.embedded, sum(writes)) == (23, 23)
    assert all(size >= min(write_size, 4) for size in writes[:-1])
    assert len(archive.points()) == 23


def test_uris_begin_where_people_find_the_archive(archive: Archive) -> None:
    fill(archive.root, 2)
    archive.run(uri_roots={"s": Path("/elsewhere")})
    assert archive.points()["s/0000.png"][1]["uri"] == "file:///elsewhere/0000.png"
    report = archive.run(uri_roots={"s": Path("/elsewhere")})
    assert (report.unchanged, report.updated) == (2, 0)


def test_image_errors_carry_their_reason() -> None:
    assert ImageError(Reason.GONE, "x").reason is Reason.GONE
