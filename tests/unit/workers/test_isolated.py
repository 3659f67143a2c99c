"""Decoding in a child process that really dies: aborts, exits, hangs, runs out of memory. Neighbours never notice."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit_support import manifest, picture

from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.errors import Reason
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.points import PreparedImage
from mcip_qdrant.prepare import Prepared, Recipe, SameBytes, prepare
from mcip_qdrant.report import DeadLetter, RunReport
from mcip_qdrant.workers.isolated import IsolatedDecoder

pytestmark = pytest.mark.timeout(120)

# A program with a decoder of its own in the child, which does what the file tells it. Results go to a file, as `prepare` gives them.
PROGRAM = """
import multiprocessing, os, pickle, resource, sys, threading, time
from pathlib import Path

import mcip_qdrant.prepare
from mcip_qdrant.decode import DecodeLimits
from mcip_qdrant.keys import ImageRef
from mcip_qdrant.report import RunReport
from mcip_qdrant.workers.isolated import IsolatedDecoder

real = mcip_qdrant.prepare.decode


def decode(data, **options):
    if data == b"abort":
        os.abort()
    if data == b"exit":
        os._exit(7)
    if data == b"hang":
        time.sleep(3600)
    if data == b"eat":
        bytearray(1 << 30)
    if data == b"eat and die":
        try:
            bytearray(1 << 30)
        except MemoryError:
            os.abort()
    if data.startswith(b"unlucky"):
        marker, data = data[7:].split(b"|", 1)
        if not os.path.exists(marker):
            Path(os.fsdecode(marker)).touch()
            os.abort()
    return real(data, **options)


if __name__ != "__main__":  # in the child alone: in the program itself, it would be the worker that dies
    mcip_qdrant.prepare.decode = decode


def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out, recipe, seconds, *names = pickle.loads(sys.stdin.buffer.read())
    report, done, children = RunReport(), [], set()
    with IsolatedDecoder(memory_mb=300, seconds=seconds) as decoder:
        for name in names:
            if name == "wait":
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                time.sleep(3600)
            if name.startswith("in background:"):
                ref = ImageRef("s", name.partition(":")[2])
                threading.Thread(target=decoder, args=(ref, recipe, None, report.timed), daemon=True).start()
                time.sleep(0.5)
                continue
            done.append(decoder(ImageRef("s", name), recipe, None, report.timed))
            children.update(child.pid for child in multiprocessing.active_children())
    left = [child.pid for child in multiprocessing.active_children()]
    bytearray(1 << 30)
    Path(out).write_bytes(pickle.dumps((done, children, left, report.seconds)))


if __name__ == "__main__":
    main()
"""


class Folder:
    """Pictures, and files that only say what the decoder should do."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "root"
        self.root.mkdir()
        for number in range(4):
            picture(self.root / f"{number}.png", (200 - number, 10 * number, 60), (30 + number, 20))
        picture(self.root / "photo.jpg", (10, 200, 30), (300, 200))
        self.recipe = Recipe({"s": self.root}, manifest().preprocess)

    def orders(self, *words: str) -> list[str]:
        for word in words:
            (self.root / word).write_text(word)
        return list(words)

    def prepare(self, name: str, recipe: Recipe | None = None, known: str | None = None) -> Prepared:
        """What comes out in process."""
        return prepare(ImageRef("s", name), recipe or self.recipe, known, RunReport().timed)

    def start(self, *names: str) -> subprocess.Popen[bytes]:
        """The program, at work on these; one of them may take two seconds."""
        program = self.home / "program.py"
        program.write_text(PROGRAM)
        started = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.home
        )
        assert started.stdin
        with started.stdin as stdin:
            stdin.write(pickle.dumps((str(self.home / "out"), self.recipe, 2, *names)))
        return started


@dataclass
class Outcome:
    """What came out of one run of the program."""

    folder: Folder
    results: dict[str, Prepared]
    children: set[int]
    left: list[int]
    seconds: dict[str, float]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def runs(pid: int) -> bool:
    """Whether a process is there, and not only waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def same(one: Prepared, other: Prepared) -> bool:
    """Equal to the bit."""
    if not (isinstance(one, PreparedImage) and isinstance(other, PreparedImage)):
        return one == other
    fields = ("ref", "sha256", "width", "height", "format", "state")
    return np.array_equal(one.pixels, other.pixels) and all(getattr(one, f) == getattr(other, f) for f in fields)


# Children that die.

KILLERS = {
    "abort": "signal SIGABRT",
    "exit": "exit code 7",
    "eat and die": "signal SIGABRT",
    "hang": "it took more than 2 s",
}
NEIGHBOURS = ("0.png", "1.png", "2.png", "photo.jpg", "3.png")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Everything that may happen to a child, in one program, with sound pictures in between."""
    folder = Folder(tmp_path_factory.mktemp("outcome"))
    folder.orders(*KILLERS, "eat")
    photo = (folder.root / "photo.jpg").read_bytes()
    (folder.root / "unlucky").write_bytes(b"unlucky" + os.fsencode(folder.home / "marker") + b"|" + photo)
    names = ["0.png", "abort", "1.png", "exit", "unlucky", "eat", "2.png", "eat and die", "photo.jpg", "hang", "3.png"]
    with folder.start(*names) as program:
        assert program.stdout
        program.stdout.read()
    assert program.returncode == 0
    done, children, left, seconds = pickle.loads((folder.home / "out").read_bytes())
    return Outcome(folder, dict(zip(names, done, strict=True)), children, left, seconds)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_are_as_in_process(outcome: Outcome, name: str) -> None:
    assert isinstance(outcome.results[name], PreparedImage)
    assert same(outcome.results[name], outcome.folder.prepare(name))


@pytest.mark.parametrize("name", KILLERS)
def test_an_image_that_kills_is_a_dead_letter(outcome: Outcome, name: str) -> None:
    message = f"decoding it killed the process, twice: {KILLERS[name]}"
    assert outcome.results[name] == DeadLetter(f"s/{name}", Reason.CRASHED_DECODER, message)


def test_a_second_chance_for_the_image_that_was_in_hand(outcome: Outcome) -> None:
    found, expected = outcome.results["unlucky"], outcome.folder.prepare("photo.jpg")
    assert isinstance(found, PreparedImage)
    assert isinstance(expected, PreparedImage)
    assert np.array_equal(found.pixels, expected.pixels)


def test_an_image_that_eats_memory_is_a_dead_letter_and_costs_no_child(outcome: Outcome) -> None:
    """The program then took the same gigabyte itself: the limit is the child's alone."""
    assert outcome.results["eat"] == DeadLetter("s/eat", Reason.OUT_OF_MEMORY, "not enough memory to decode it")


def test_one_child_as_long_as_nothing_happens(outcome: Outcome) -> None:
    """As seen after each image: the first, one after each image that killed, one after the first try of the unlucky one."""
    # An image that kills twice leaves none.
    assert len(outcome.children) == 5
    assert outcome.left == []
    assert [pid for pid in outcome.children if runs(pid)] == []
    assert outcome.seconds["decode"] > 2 * 2, "hanging is decoding"


def test_a_real_picture_that_needs_more_than_it_may_have(folder: Folder) -> None:
    picture(folder.root / "large.png", (1, 2, 3), (6000, 4000))
    assert isinstance(folder.prepare("large.png"), PreparedImage)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with IsolatedDecoder(memory_mb=24) as isolated:
        results = [
            isolated(ImageRef("s", name), folder.recipe, None, RunReport().timed) for name in ("large.png", "1.png")
        ]
    assert isinstance(results[0], DeadLetter)
    assert results[0].reason in {Reason.OUT_OF_MEMORY, Reason.CRASHED_DECODER}
    assert same(results[1], folder.prepare("1.png"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


# Children that outlive nobody.


@pytest.mark.parametrize("last", ["1.png", "in background:hang"])
def test_no_orphan_when_the_worker_is_killed(folder: Folder, last: str) -> None:
    """Idle, or in the middle of an image: then it ends with the time that one image may take, at the latest."""
    folder.orders("hang")
    with folder.start("0.png", last, "wait") as program:
        assert program.stdout
        (child,) = map(int, program.stdout.readline().split())
        assert runs(child)
        program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)


def test_a_child_only_when_there_is_work_and_never_after(folder: Folder) -> None:
    with IsolatedDecoder() as isolated:
        assert multiprocessing.active_children() == []
        for _ in range(3):
            assert same(
                isolated(ImageRef("s", "0.png"), folder.recipe, None, RunReport().timed), folder.prepare("0.png")
            )
        (child,) = multiprocessing.active_children()
    assert child.pid
    assert not runs(child.pid)


def test_the_child_ends_when_an_error_leaves_the_block(folder: Folder) -> None:
    def fail(_prepared: Prepared) -> None:
        assert len(multiprocessing.active_children()) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), IsolatedDecoder() as isolated:
        fail(isolated(ImageRef("s", "0.png"), folder.recipe, None, RunReport().timed))
    assert multiprocessing.active_children() == []


# The same as in process.


def test_everything_else_is_as_in_process(folder: Folder) -> None:
    root = folder.root
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no picture")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:60])
    (root / "out.jpg").symlink_to("/etc/hostname")
    (root / "folder.jpg").mkdir()
    picture(root / "large.png", (1, 2, 3), (500, 400))
    (root / "long.jpg").write_bytes(b"\xff\xd8\xff" + bytes(20_000))
    limits = DecodeLimits(max_bytes=10_000, max_pixels=100_000)
    recipe = Recipe({"s": root}, manifest().preprocess, limits)
    expected = {
        "0.png": None,
        "photo.jpg": None,
        "gone.jpg": Reason.GONE,
        "sub/gone.jpg": Reason.GONE,
        "nul%00.jpg": Reason.GONE,
        "empty.jpg": Reason.EMPTY,
        "text.jpg": Reason.NOT_AN_IMAGE,
        "cut.png": Reason.CORRUPT,
        "out.jpg": Reason.OUTSIDE_ROOT,
        "folder.jpg": Reason.NOT_A_FILE,
        "large.png": Reason.TOO_MANY_PIXELS,
        "long.jpg": Reason.TOO_LARGE,
    }
    with IsolatedDecoder() as isolated:
        for name, reason in expected.items():
            found = isolated(ImageRef("s", name), recipe, None, RunReport().timed)
            assert same(found, folder.prepare(name, recipe)), name
            assert getattr(found, "reason", None) is reason
        scaled = Recipe({"s": root}, manifest().preprocess, decode="scaled")
        child = multiprocessing.active_children()
        assert len(child) == 1, "none of these costs a child"
    with IsolatedDecoder() as isolated:
        found = isolated(ImageRef("s", "photo.jpg"), scaled, None, RunReport().timed)
        assert same(found, folder.prepare("photo.jpg", scaled))
        known: Any = found
        assert isinstance(isolated(ImageRef("s", "photo.jpg"), scaled, known.sha256, RunReport().timed), SameBytes)
        assert isinstance(isolated(ImageRef("s", "photo.jpg"), scaled, "0" * 64, RunReport().timed), PreparedImage)


def test_several_threads_and_the_time_that_it_takes(folder: Folder) -> None:
    report = RunReport()
    names = [f"{number % 4}.png" for number in range(24)]
    with IsolatedDecoder() as isolated, ThreadPoolExecutor(4) as threads:

        def one(name: str) -> Prepared:
            return isolated(ImageRef("s", name), folder.recipe, None, report.timed)

        found = list(threads.map(one, names))
        assert len(multiprocessing.active_children()) == 1
    assert all(same(result, folder.prepare(name)) for name, result in zip(names, found, strict=True))
    assert report.seconds["decode"] > 0
    assert report.seconds["read"] == 0, "in the child it is all one"
    assert threading.active_count() < 20
