"""Reading never leaves the source's folder, never hangs, and says why it failed."""

from __future__ import annotations

import hashlib
import os
import socket
from datetime import datetime
from pathlib import Path

import pytest
from unit_support import open_folder, without_privileges

from mcip_qdrant.errors import ImageError, Reason
from mcip_qdrant.keys import ImageRef, encode_path
from mcip_qdrant.read import FileState, ReadImage, read_image, stat_image

pytestmark = pytest.mark.timeout(20)


def read(root: Path, path: str | bytes, max_bytes: int = 1000) -> ReadImage:
    return read_image(root, ImageRef("s", encode_path(path)), max_bytes=max_bytes)


def refused(root: Path, path: str | bytes, max_bytes: int = 1000) -> Reason:
    with pytest.raises(ImageError) as caught:
        read(root, path, max_bytes)
    assert str(caught.value)
    return caught.value.reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.jpg").write_bytes(b"inside")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    return root


def test_a_file(root: Path) -> None:
    os.utime(root / "sub" / "a.jpg", ns=(0, 1_700_000_000_123_456_789))
    image = read(root, "sub/a.jpg")
    assert image.data == b"inside"
    assert image.sha256 == hashlib.sha256(b"inside").hexdigest()
    assert image.state == FileState(6, "2023-11-14T22:13:20.123456Z")
    assert stat_image(root, ImageRef("s", "sub/a.jpg")) == image.state


def test_times_before_1970_and_whole_seconds(root: Path) -> None:
    path = root / "sub" / "a.jpg"
    os.utime(path, ns=(0, -1))
    assert read(root, "sub/a.jpg").state.modified_at == "1969-12-31T23:59:59.999999Z"
    os.utime(path, ns=(0, 0))
    assert read(root, "sub/a.jpg").state.modified_at == "1970-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("seconds", [10**13, -(10**13), 1 << 60])
def test_times_that_no_calendar_knows(seconds: int, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    # Such stamps come with damaged disks and odd servers; not every file system of a test machine can hold one.
    real = (root / "sub" / "a.jpg").stat()

    class Odd:
        st_mode, st_size, st_mtime_ns = real.st_mode, real.st_size, seconds * 10**9

    monkeypatch.setattr(os, "fstat", lambda _descriptor: Odd)
    image = read(root, "sub/a.jpg")
    assert image.data == b"inside"
    assert datetime.fromisoformat(image.state.modified_at).year == (9999 if seconds > 0 else 1)


def test_a_changed_size_or_time_is_seen(root: Path) -> None:
    ref, path = ImageRef("s", "sub/a.jpg"), root / "sub" / "a.jpg"
    os.utime(path, ns=(0, 10**18))
    before = stat_image(root, ref)
    os.utime(path, ns=(0, 10**18 + 1000))
    after = stat_image(root, ref)
    path.write_bytes(b"longer than before")
    os.utime(path, ns=(0, 10**18 + 1000))
    assert len({before, after, stat_image(root, ref)}) == 3


def test_odd_names(root: Path) -> None:
    for number, name in enumerate([b"new\nline", b"caf\xe9", b"100%41", b"-x", b"\xed\xb2\x80", b"a (deleted)"]):
        with open(os.fsencode(root) + b"/sub/" + name, "wb") as stream:  # noqa: PTH123
            stream.write(b"%d" % number)
        assert read(root, b"sub/" + name).data == b"%d" % number


@pytest.mark.parametrize(
    "path",
    [
        "link.jpg",
        "chain.jpg",
        "parent/secret.jpg",
        "../outside/secret.jpg",
        "sub/../../outside/secret.jpg",
        "hard/secret.jpg",
    ],
)
def test_nothing_outside_the_root_is_read(root: Path, path: str) -> None:
    (root / "link.jpg").symlink_to("../outside/secret.jpg")
    (root / "chain.jpg").symlink_to("link.jpg")
    (root / "parent").symlink_to("../outside")
    (root / "hard").symlink_to(root.parent.resolve() / "outside")
    assert (root / path).read_bytes() == b"secret"
    assert refused(root, path) is Reason.OUTSIDE_ROOT


def test_an_absolute_path_in_a_reference_is_no_way_out(root: Path) -> None:
    assert refused(root, str(root.parent / "outside" / "secret.jpg")) is Reason.OUTSIDE_ROOT
    assert read(root, str(root / "sub" / "a.jpg")).data == b"inside"


def test_a_sibling_whose_name_begins_like_the_root_is_outside(root: Path) -> None:
    (root.parent / "root2").mkdir()
    (root.parent / "root2" / "x.jpg").write_bytes(b"x")
    assert refused(root, "../root2/x.jpg") is Reason.OUTSIDE_ROOT


def test_symlinks_inside_the_root_are_followed(root: Path) -> None:
    (root / "link.jpg").symlink_to("sub/a.jpg")
    (root / "folder").symlink_to("sub")
    (root / "around.jpg").symlink_to("../root/sub/a.jpg")
    for path in ("link.jpg", "folder/a.jpg", "around.jpg", "sub/../sub/a.jpg"):
        assert read(root, path).data == b"inside"


def test_a_symlink_swapped_in_between_is_caught(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def swap_then_open(path: bytes, flags: int, *rest: int) -> int:
        (root / "sub").rename(root / "moved")
        (root / "sub").symlink_to("../outside")
        (root.parent / "outside" / "a.jpg").write_bytes(b"secret")
        return real(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swap_then_open)
        assert refused(root, "sub/a.jpg") is Reason.OUTSIDE_ROOT


def test_the_root_may_be_a_symlink(root: Path) -> None:
    link = root.parent / "link-to-root"
    link.symlink_to("root")
    assert read(link, "sub/a.jpg").data == b"inside"
    assert refused(link, "../outside/secret.jpg") is Reason.OUTSIDE_ROOT


def test_the_root_may_be_the_whole_file_system(root: Path) -> None:
    assert read(Path("/"), os.fsencode(root / "sub" / "a.jpg").lstrip(b"/")).data == b"inside"


def test_a_pipe_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    assert refused(root, "pipe.jpg") is Reason.NOT_A_FILE


def test_a_socket(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.jpg")
        assert refused(root, "s.jpg") is Reason.NOT_A_FILE


@pytest.mark.parametrize("path", ["sub", ".", "", "sub/"])
def test_a_folder(root: Path, path: str) -> None:
    assert refused(root, path) is Reason.NOT_A_FILE


def test_a_device_is_not_a_file(root: Path) -> None:
    (root / "zero.jpg").symlink_to("/dev/zero")
    assert refused(root, "zero.jpg") is Reason.NOT_A_FILE


def test_the_size_limit_is_inclusive(root: Path) -> None:
    assert read(root, "sub/a.jpg", max_bytes=6).data == b"inside"
    assert refused(root, "sub/a.jpg", max_bytes=5) is Reason.TOO_LARGE


def test_a_huge_file_is_refused_by_its_size_alone(root: Path) -> None:
    with (root / "huge.jpg").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse
    assert refused(root, "huge.jpg", max_bytes=1 << 28) is Reason.TOO_LARGE


def test_a_file_that_grows_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = root / "sub" / "a.jpg", os.fstat

    def stat_then_grow(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        path.write_bytes(b"x" * 5000)
        return found

    monkeypatch.setattr(os, "fstat", stat_then_grow)
    assert refused(root, "sub/a.jpg", max_bytes=100) is Reason.TOO_LARGE


def test_an_empty_file_is_read(root: Path) -> None:
    (root / "empty.jpg").touch()
    assert read(root, "empty.jpg").data == b""


@pytest.mark.parametrize("path", ["none.jpg", "none/a.jpg", "sub/a.jpg/b.jpg", "dangling.jpg"])
def test_gone(root: Path, path: str) -> None:
    (root / "dangling.jpg").symlink_to("nowhere")
    assert refused(root, path) is Reason.GONE
    assert stat_image(root, ImageRef("s", path)) is None


def test_gone_with_the_whole_root(root: Path) -> None:
    assert refused(root / "none", "a.jpg") is Reason.GONE


def test_loops_and_long_names(root: Path) -> None:
    (root / "loop.jpg").symlink_to("loop.jpg")
    assert refused(root, "loop.jpg") is Reason.UNREADABLE
    assert refused(root, "x" * 300) is Reason.UNREADABLE
    assert stat_image(root, ImageRef("s", "loop.jpg")) is None


def test_a_reference_with_an_encoded_nul(root: Path) -> None:
    # Cannot come from a listing, but references also come from a queue.
    ref = ImageRef("s", "sub/a.jpg%00")
    with pytest.raises(ImageError) as caught:
        read_image(root, ref, max_bytes=1000)
    assert caught.value.reason is Reason.GONE
    assert stat_image(root, ref) is None


def test_no_permission() -> None:
    with open_folder() as root:
        for name in ("file", "closed/file", "open"):
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"data")
            path.chmod(0o644)
        (root / "file").chmod(0)
        (root / "closed").chmod(0)
        lines = without_privileges(
            """
            from pathlib import Path
            from mcip_qdrant.errors import ImageError
            from mcip_qdrant.keys import ImageRef
            from mcip_qdrant.read import read_image, stat_image
            """,
            """
            for name in ("file", "closed/file", "open"):
                ref = ImageRef("s", name)
                try:
                    print(name, read_image(Path(sys.argv[1]), ref, max_bytes=10).data)
                except ImageError as exc:
                    print(name, exc.reason, exc, stat_image(Path(sys.argv[1]), ref) is None)
            """,
            str(root),
        )
        (root / "closed").chmod(0o755)
    assert lines == [
        "file unreadable Permission denied False",
        "closed/file unreadable Permission denied True",
        "open b'data'",
    ]


def test_no_descriptor_leaks(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    (root / "out.jpg").symlink_to("../outside/secret.jpg")

    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_descriptors()
    for _ in range(5):
        for path, limit in (
            ("sub/a.jpg", 10),
            ("sub/a.jpg", 1),
            ("pipe.jpg", 10),
            ("out.jpg", 10),
            ("sub", 10),
            ("none", 10),
        ):
            try:
                read(root, path, limit)
            except ImageError:
                continue
    assert open_descriptors() == before
